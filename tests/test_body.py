"""What a body's structure may be, before it is read as JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import TooLargeError
from assay.server.body import _check_structure

SIZE = 1 << 20
LIMIT = 8 * 100 + 10_000
BOMBS = {
    "lists": b'{"input":[' + b"[1]," * (SIZE // 4) + b"[1]]}",
    "objects": b"[" + b"{}," * (SIZE // 3) + b"{}]",
    "members": b"{" + b'"a":1,' * (SIZE // 6) + b'"b":1}',
    "never closed": b"[" * SIZE,
    "among strings": b"[" + b'"a\\"",[],' * (SIZE // 9) + b"[]]",
}
TEXTS = {
    "one text of brackets": json.dumps({"input": "a: [b] {c} " * (SIZE // 11)}).encode(),
    "a text that never ends": b'{"input": "' + b"[{:" * (SIZE // 3),
    "quotes": b'{"input": "' + b'\\"[' * (SIZE // 3) + b'"}',
    "backslashes": b'"' + b"\\\\" * (SIZE // 2) + b'"',
    "token ids": json.dumps({"input": list(range(100)) * 2000}).encode(),
    "inputs as objects": json.dumps({"input": [{"text": "a: [b]" * 500, "text_pair": "{c}"}] * 100}).encode(),
    "a conversation": json.dumps({"messages": [{"role": "user", "content": "a"}] * 3000}).encode(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_structure_without_end_is_refused(name: str) -> None:
    with pytest.raises(TooLargeError, match="lists, objects and members"):
        _check_structure(BOMBS[name], 100)


@pytest.mark.parametrize("name", TEXTS)
def test_long_texts_are_not_structure(name: str) -> None:
    _check_structure(TEXTS[name], 100)


JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count, value.values()))
    return 1 + sum(map(count, value)) if isinstance(value, list) else 0


@given(value=JSON)
def test_the_count_is_that_of_the_json(value: Any) -> None:
    body = json.dumps([value, *[[]] * LIMIT]).encode()
    assert 1 + count(value) + LIMIT > LIMIT
    with pytest.raises(TooLargeError, match=f"has {1 + count(value) + LIMIT} lists"):
        _check_structure(body, 100)

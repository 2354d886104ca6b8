"""Bytes that nobody sends, to every dialect's parser: a call or an AssayError, in bounded time, and nothing else.

The seeds are the golden bodies; the same bytes every time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.dialects import DIALECTS, PATHS
from assay.dialects.dialect import Call, Dialect, Incoming, choose
from assay.errors import AssayError, RequestError

GOLDEN = Path(__file__).parent / "golden"
BOUND = timedelta(seconds=20)  # for one body to every dialect, in milliseconds as a rule; only a hang comes near it
# Bytes that mean something to JSON, to UTF-8 or to us.
TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\ud800", b"null", b"true", b"NaN", b"-", b"1e999"),
    *(b"0", b"-1", b"1.5", b"9" * 40, b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b" ", b"[[", b"[]", b"{}"),
    *(b'""', b'" "', b'"input":', b'"inputs":', b'"query":', b'"model":', b'"rid":', b'"text":', b'"messages":'),
]


def bodies() -> list[bytes]:
    """What the golden files send."""
    seeds = {b"", b"{}", b"[]", b"null", b'"a"', b"5"}
    for path in sorted(GOLDEN.rglob("*.json")):
        body = json.loads(path.read_text("utf-8"))["request"]["body"]
        seeds.add((body if isinstance(body, str) else json.dumps(body)).encode())
    return sorted(seeds)


SEEDS = bodies()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A golden body with some cuts, insertions, repetitions and other bodies' parts."""
    body = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(body)))
        stop = min(len(body), start + draw(st.integers(0, 12)))
        part = draw(
            st.one_of(
                st.sampled_from(TOKENS),
                st.binary(max_size=4),
                st.sampled_from(SEEDS),
                st.builds(lambda times, cut=body[start:stop]: cut * times, st.integers(0, 40)),
            )
        )
        body = body[:start] + part + body[stop:]
    return body


PATH = st.fixed_dictionaries({"model": st.text(max_size=5), "version": st.sampled_from(["1", "2", ""])})
HEADERS = st.dictionaries(st.sampled_from([b"detector-id", b"x-request-id", b"content-type"]), st.binary(max_size=5))


@contextmanager
def only_our_errors(dialect: str, body: bytes) -> Iterator[None]:
    refusal: AssayError | None = None
    try:
        yield
    except AssayError as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{dialect} raised {error!r} for {body!r}") from error
    if refusal is not None:
        assert isinstance(refusal, RequestError), f"{dialect} blames itself for {body!r}"
        assert 0 < len(refusal.message) < 2000


def parse_everywhere(body: bytes, path: dict[str, str], headers: dict[bytes, bytes]) -> None:
    for shared in PATHS.values():
        assert choose(shared, body) in shared
    for dialect in DIALECTS:
        with only_our_errors(dialect.name, body):
            assert isinstance(dialect.parse(Incoming(body, path, headers)), Call)


ARGUMENTS = {"path": PATH, "headers": HEADERS}
COMMON: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": BOUND,
    "suppress_health_check": list(HealthCheck),
}


@given(body=st.one_of(mutated(), st.binary(max_size=60)), **ARGUMENTS)
@settings(max_examples=300, **COMMON)
def test_some_bytes(body: bytes, path: dict[str, str], headers: dict[str, str]) -> None:
    parse_everywhere(body, path, headers)


@pytest.mark.slow
@given(body=st.one_of(mutated(), mutated(), mutated(), st.binary()), **ARGUMENTS)
@settings(max_examples=3_500, **COMMON)
def test_many_bytes(body: bytes, path: dict[str, str], headers: dict[str, str]) -> None:
    parse_everywhere(body, path, headers)


MEGABYTE = 2**20
LARGE = {
    "open lists": b"[" * MEGABYTE,
    "lists": b"[" * (MEGABYTE // 2) + b"]" * (MEGABYTE // 2),
    "objects": b'{"a":' * (MEGABYTE // 5),
    "spaces": b" " * MEGABYTE,
    "digits": b'{"input": [' + b"9" * MEGABYTE + b"]}",
    "escapes": b'{"input": "' + b"\\u0000" * (MEGABYTE // 6) + b'"}',
    "backslashes": b'{"input": "' + b"\\" * MEGABYTE,
    "surrogates": b'{"input": "' + b"\\ud800" * (MEGABYTE // 6) + b'"}',
    "quotes": b'"' * MEGABYTE,
    "commas": b'{"input": [' + b"," * MEGABYTE,
    "empty texts": b'{"input": [' + b",".join([b'""'] * (MEGABYTE // 3)) + b"]}",
    "many keys": b"{" + b",".join(b'"k%d": 1' % i for i in range(MEGABYTE // 12)) + b"}",
    "one key": b"{" + b",".join([b'"input": "a"'] * (MEGABYTE // 13)) + b"}",
    "wrong item at the end": b'{"input": [' + b'"a",' * (MEGABYTE // 4) + b"{}]}",
    "no UTF-8 at the end": b'{"input": "' + b"a" * MEGABYTE + b'\xff"}',
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_large_bodies_end(dialect: Dialect) -> None:
    """A megabyte of each. What takes a time that grows with its square would not come back within a test run."""
    for body in LARGE.values():
        with only_our_errors(dialect.name, body[:50]):
            dialect.parse(Incoming(body, {"model": "a", "version": "1"}))
        choose((dialect, dialect), body)

"""Every dialect, by the table: whatever stands in its example, the answer is its own answer or its own error."""

import json
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import httpx
import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.dialects import DIALECTS, PATHS
from assay.dialects.dialect import Dialect
from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

Place = tuple[str | int, ...]
# The path that is a dialect's own, or where its example's keys choose it.
PATH_OF = {
    dialect.name: next((p for p in dialect.paths if len(PATHS[p]) == 1), dialect.paths[0]) for dialect in DIALECTS
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[bool, InProcess]]:
    """A model with one label, and one with two, of which one is harmless."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    save_bert(one, num_labels=1, num_hidden_layers=1)
    save_bert(two, num_labels=2, num_hidden_layers=1, id2label={0: "safe", 1: "toxic"})
    async with in_process(one, served_model_name="tiny") as first, in_process(two, served_model_name="tiny") as second:
        yield {True: first, False: second}


def fitting(servers: dict[bool, InProcess], dialect: Dialect) -> httpx.AsyncClient:
    return servers[len(dialect.example_labels) == 1].client


def url_of(dialect: Dialect) -> str:
    return PATH_OF[dialect.name].replace("{model:path}", "tiny").replace("{version}", "1")


def texts_in(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where an example holds free text: strings with a space in them, which no keyword has."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts_in(item, (*place, index))
    elif isinstance(value, str) and " " in value:
        yield place


def places_in(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every place of an example, the whole included."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places_in(item, (*place, key))


def replaced(value: Any, place: Place, by: Any) -> Any:
    if not place:
        return by
    copy = deepcopy(value)
    holder = copy
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = by
    return copy


def is_one_of(value: Any, wire: Any) -> bool:
    """The value is of the wire type, and holds nothing that the type has not."""
    for kind in get_args(wire) if isinstance(wire, UnionType) else (wire,):
        try:
            read = msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError:
            continue
        if msgspec.to_builtins(read) == value:
            return True
    return False


async def check(servers: dict[bool, InProcess], dialect: Dialect, body: Any) -> httpx.Response:
    """An answer or a refusal, each in the dialect's shape, and never a failure."""
    content = json.dumps(body, ensure_ascii=True).encode()
    headers = {"content-type": "application/json"}
    response = await fitting(servers, dialect).request(
        dialect.methods[0], url_of(dialect), content=content, headers=headers
    )
    wires = PATHS[PATH_OF[dialect.name]]  # where it shares its path, a changed body may be another's
    if response.status_code == 200:
        assert any(is_one_of(response.json(), other.response) for other in wires), response.text
    else:
        assert 400 <= response.status_code < 500 or response.status_code == 424, response.text
        assert any(is_one_of(response.json(), other.error) for other in wires), response.text
    return response


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_its_example_is_answered(servers: dict[bool, InProcess], dialect: Dialect) -> None:
    assert (await check(servers, dialect, dialect.example)).status_code == 200
    assert list(texts_in(dialect.example)), "the tests below need a text to replace"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_naughty_strings(servers: dict[bool, InProcess], dialect: Dialect, shared_data: Path) -> None:
    """All of them, in the example's texts one after the other."""
    places = list(texts_in(dialect.example))
    strings = json.loads((shared_data / "blns" / "blns.json").read_text("utf-8"))
    answered = 0
    for index, text in enumerate(strings):
        response = await check(servers, dialect, replaced(dialect.example, places[index % len(places)], text))
        answered += response.status_code == 200
    assert answered > len(strings) // 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
async def test_any_value_in_any_place(servers: dict[bool, InProcess], dialect: Dialect, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(list(places_in(dialect.example))))
    await check(servers, dialect, replaced(dialect.example, place, data.draw(JSON)))


async def test_another_shape_is_not_taken_for_its_own(servers: dict[bool, InProcess]) -> None:
    """The check above can fail: one key more, one less, another type."""
    dialect = DIALECTS[0]
    body = (await fitting(servers, dialect).post(url_of(dialect), json=dialect.example)).json()
    assert is_one_of(body, dialect.response)
    assert not is_one_of(body | {"more": 1}, dialect.response)
    assert not is_one_of({key: item for key, item in body.items() if key != "usage"}, dialect.response)
    assert not is_one_of(body | {"created": "now"}, dialect.response)
    assert not is_one_of(body, dialect.error)

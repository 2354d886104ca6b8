"""Whatever a caller sends, the answer is a valid 200 or an error in the document's shape, and the server lives on."""

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = {"input": "Loved the new café—coffee was great."}
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder)
    async with in_process(folder, served_model_name="tiny") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def good_scores(running: InProcess) -> list[float]:
    """What the good request gave before anything bad came."""
    return (await running.classify(**GOOD)).json()["data"][0]["probs"]


@pytest_asyncio.fixture(loop_scope="module")
async def server(running: InProcess, good_scores: list[float]) -> AsyncIterator[InProcess]:
    """The same good request gives the same answer after every test."""
    yield running
    after = await running.classify(**GOOD)
    assert after.status_code == 200, after.text
    assert after.json()["data"][0]["probs"] == pytest.approx(good_scores, abs=1e-6)


async def send(server: InProcess, body: Any, headers: dict[str, str] = JSON) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await server.client.post("/v1/classify", content=content, headers=headers)


def assert_error(response: httpx.Response, status: int | tuple[int, ...] = 400) -> dict[str, Any]:
    """The document's shape: a message, a type, the status as a number; nothing of our insides."""
    allowed = (status,) if isinstance(status, int) else status
    assert response.status_code in allowed, response.text[:500]
    body = response.json()
    assert isinstance(body["error"], str)
    assert body["error"]
    assert isinstance(body["type"], str)
    assert body["type"]
    assert body["code"] == response.status_code
    assert "Traceback" not in response.text
    assert len(response.text) < 2000, "an error does not send the input back whole"
    return body


def assert_answer(response: httpx.Response, inputs: int) -> None:
    assert response.status_code == 200
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(inputs))
    for item in data:
        assert len(item["probs"]) == item["num_classes"] == 3
        assert all(0 <= p <= 1 for p in item["probs"])
        assert math.isclose(sum(item["probs"]), 1, abs_tol=1e-5)


# --- what is not JSON ---

NOT_JSON = {
    "nothing": b"",
    "spaces": b"  \n",
    "text": b"hello",
    "form": b"input=hello",
    "truncated": b'{"input": "hel',
    "truncated escape": b'{"input": "\\u12',
    "two objects": b'{"input": "a"}{"input": "b"}',
    "single quotes": b"{'input': 'a'}",
    "trailing comma": b'{"input": "a",}',
    "comment": b'{"input": "a"} // b',
    "control character": b'{"input": "a\x01b"}',
    "NUL byte": b'{"input": "a\x00b"}',
    "only NUL": b"\x00",
    "NaN": b'{"input": NaN}',
    "infinity": b'{"input": [-Infinity]}',
    "utf-16": '{"input": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"input": "a"}',
    "latin-1": '{"input": "café"}'.encode("latin-1"),
    "invalid utf-8": b'{"input": "\xff\xfe"}',
    "overlong utf-8": b'{"input": "\xc0\xaf"}',
    "lone surrogate, escaped": b'{"input": "\\ud800"}',
    "lone low surrogate, escaped": b'{"input": ["a", "b\\udc00c"]}',
    "lone surrogate, raw": b'{"input": "\xed\xa0\x80"}',
    "surrogate in rid": b'{"input": "a", "rid": "\\ud83d"}',
    "deep lists": b"[" * 100_000,
    "deep lists, closed": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "deep in input": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in an unknown field": b'{"input": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "number of 5000 digits": b'{"input": [' + b"9" * 5000 + b"]}",
    "number beyond any float": b'{"input": [1e400]}',
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_not_json(server: InProcess, body: bytes) -> None:
    assert_error(await send(server, body))


@pytest.mark.parametrize("name", ["utf-16", "byte order mark", "latin-1"])
async def test_a_foreign_encoding_is_called_one(server: InProcess, name: str) -> None:
    """The message names what is wrong: UTF-8 is asked for, and nobody sent a surrogate."""
    message = assert_error(await send(server, NOT_JSON[name]))["error"]
    assert "utf-8" in message.lower()
    assert "surrogate" not in message


# --- wrong types: every field against every type that it does not take ---

VALUES = {
    "null": None,
    "true": True,
    "integer": 5,
    "huge": 10**30,
    "float": 1.5,
    "text": "x",
    "empty text": "",
    "list": [],
    "list of texts": ["a", "b"],
    "list of lists": [["a"]],
    "object": {"a": 1},
}
# Fields, and the values above that each takes. Unlisted values get 400.
TAKES = {
    "input": {"text", "list of texts"},
    "model": {"null", "empty text"},
    "user": {"null", "text", "empty text"},
    "rid": {"null", "text", "empty text", "list", "list of texts"},
    "request_id": {"null", "text", "empty text"},
    "priority": {"integer", "huge", "null"},
    "truncate_prompt_tokens": {"null", "integer"},
    "truncation_side": {"null"},
    "add_special_tokens": {"null", "true"},
    "use_activation": {"null", "true"},
    "activation": {"null", "true"},
    "softmax": {"null", "true"},
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", TAKES)
async def test_wrong_types(server: InProcess, field: str, value: str) -> None:
    response = await send(server, GOOD | {field: VALUES[value]})
    if value in TAKES[field]:
        assert response.status_code == 200, response.text
    elif field == "model" and value == "text":
        assert assert_error(response, 404)["type"] == "model_not_found"
    else:
        assert assert_error(response)["param"] == field


@pytest.mark.parametrize(
    "value",
    [[None], [1.5], [5, 1.0], [True], [{"a": 1}], ["a", 5], [[5], "a"], [[5], 5], [["a"]], [[[5]]], [[5, None]]],
    ids=str,
)
async def test_wrong_types_within_the_input(server: InProcess, value: Any) -> None:
    assert assert_error(await send(server, {"input": value}))["param"] == "input"


@pytest.mark.parametrize("body", [None, True, 5, 1.5, "text", [], ["a"], [{"input": "a"}], {}], ids=str)
async def test_bodies_that_hold_no_input(server: InProcess, body: Any) -> None:
    assert_error(await send(server, body))


# --- values ---


def digits(number: int) -> str:
    return f"{'-' if number < 0 else ''}{len(str(abs(number)))} digits"


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u00a0", "\u2003\u3000"], ids=ascii)
async def test_empty_and_white_space(server: InProcess, text: str) -> None:
    assert "empty" in assert_error(await send(server, {"input": text}))["error"]
    assert "index 1" in assert_error(await send(server, {"input": ["a", text]}))["error"]


@pytest.mark.parametrize("token_id", [-1, -(10**30), 2**31, 2**63, 2**64, 10**30, 10**4000], ids=digits)
async def test_token_ids_out_of_vocabulary(server: InProcess, token_id: int) -> None:
    assert_error(await send(server, {"input": [5, token_id]}))
    assert_error(await send(server, {"input": [[5], [token_id]]}))


@pytest.mark.parametrize("number", [10**30, -(10**30), 2**63, -(2**63), 10**4000, -(10**4000)], ids=digits)
async def test_huge_numbers_elsewhere(server: InProcess, number: int) -> None:
    assert_answer(await send(server, GOOD | {"priority": number}), 1)
    assert_error(await send(server, GOOD | {"truncate_prompt_tokens": number}))


async def test_over_length(server: InProcess) -> None:
    error = assert_error(await send(server, {"input": "coffee " * 127}))
    assert error["type"] == "context_length_exceeded"
    assert error["error"].startswith(
        "This model's maximum context length is 128 tokens. However, your prompt contains "
    )
    assert "129 input tokens" in error["error"]
    assert_answer(await send(server, {"input": "coffee " * 126}), 1)
    assert_error(await send(server, {"input": [[5] * 128, [5] * 129]}))
    assert_answer(await send(server, {"input": "coffee " * 127, "truncate_prompt_tokens": -1}), 1)


async def test_unknown_model_with_an_endless_name(server: InProcess) -> None:
    assert_error(await send(server, GOOD | {"model": "m" * 100_000}), 404)


async def test_nul_is_a_character(server: InProcess) -> None:
    assert_answer(await send(server, {"input": "a\x00b"}), 1)
    assert_answer(await send(server, GOOD | {"user": "\x00", "rid": "\x00"}), 1)
    response = await send(server, {"input": "\x00"})  # a text, though no token is left of it beside the special ones
    assert response.status_code in (200, 400)


async def test_a_text_with_no_tokens_at_all(server: InProcess) -> None:
    assert_error(await send(server, {"input": "\x00", "add_special_tokens": False}))


async def test_one_bad_input_refuses_the_request_and_no_other(server: InProcess) -> None:
    assert_error(await send(server, {"input": ["great"] * 50 + [""]}))
    assert_answer(await send(server, {"input": ["great"] * 51}), 51)


# --- size ---


async def test_ten_megabytes(server: InProcess) -> None:
    assert assert_error(await send(server, {"input": "a" * 10_000_000}), 413)["type"] == "request_too_large"


async def test_ten_megabytes_without_a_length(server: InProcess) -> None:
    """Refused as soon as the limit is passed, not after the last byte."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"input": "'
        for _ in range(1000):
            sent += 1
            yield b"a" * 100_000

    response = await server.client.post("/v1/classify", content=chunks(), headers=JSON)
    assert_error(response, 413)
    assert "content-length" not in response.request.headers
    assert sent < 100, f"read {sent} chunks of 100 kB"


async def test_a_long_text_within_the_limit_is_over_length(server: InProcess) -> None:
    assert_error(await send(server, {"input": "coffee " * 300_000}))


async def test_a_hundred_thousand_inputs(server: InProcess) -> None:
    assert_error(await send(server, {"input": ["a"] * 100_000}), 413)
    assert_error(await send(server, {"input": [[5]] * 100_000}), 413)


@pytest.mark.parametrize("length", ["-1", "abc", "1e9", "9" * 400], ids=lambda text: text[:5])
async def test_a_content_length_that_is_none(server: InProcess, length: str) -> None:
    response = await send(server, GOOD, JSON | {"Content-Length": length})
    assert response.status_code == 200 or assert_error(response, (400, 413))


# --- headers and paths ---


@pytest.mark.parametrize("media_type", ["text/plain", "", "application/x-www-form-urlencoded", "json", "application/"])
async def test_media_types(server: InProcess, media_type: str) -> None:
    assert_error(await send(server, GOOD, {"Content-Type": media_type}), 415)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_wrong_methods(server: InProcess, method: str) -> None:
    response = await server.client.request(method, "/v1/classify", json=GOOD)
    assert_error(response, 405)
    assert "POST" in response.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/v1/classify/x", "/v1/classify%00", "/../etc/passwd", "/v1/" + "x" * 500]
)
async def test_unknown_paths(server: InProcess, path: str) -> None:
    assert_error(await server.client.post(path, json=GOOD), 404)


@pytest.mark.parametrize(
    "request_id", [b"\xff\xfe", b"<script>", b"x" * 5000, b"a\tb"], ids=["latin", "html", "long", "tab"]
)
async def test_strange_request_ids(server: InProcess, request_id: bytes) -> None:
    response = await server.client.post("/v1/classify", json=GOOD, headers={b"X-Request-Id": request_id})
    assert_answer(response, 1)
    assert len(response.json()["id"]) <= 140


# --- the big list of naughty strings, and whatever hypothesis thinks of ---


async def test_naughty_strings(server: InProcess, shared_data: Path) -> None:
    strings = json.loads((shared_data / "blns" / "blns.json").read_text("utf-8"))
    assert len(strings) > 500
    scored = []
    for text in strings:
        response = await send(server, {"input": text, "user": text, "truncate_prompt_tokens": -1})
        if not text or text.isspace():
            assert_error(response)
        else:
            assert_answer(response, 1)
            scored.append(text)
    assert_answer(await send(server, {"input": scored, "truncate_prompt_tokens": -1}), len(scored))


async def test_naughty_strings_as_ids_and_models(server: InProcess, shared_data: Path) -> None:
    for text in json.loads((shared_data / "blns" / "blns.json").read_text("utf-8")):
        assert_answer(await send(server, GOOD | {"rid": text}), 1)
        if text:
            assert_error(await send(server, GOOD | {"model": text}), 404)


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)  # lone surrogates too
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)
ANY_REQUEST = st.fixed_dictionaries(
    {}, optional={field: ANY_JSON | st.integers(-3, 130) for field in TAKES} | {"messages": ANY_JSON}
)
LIKELY_REQUEST = st.fixed_dictionaries(
    {
        "input": ANY_TEXT
        | st.lists(ANY_TEXT, max_size=4)
        | st.lists(st.integers(-1, 200) | st.lists(st.integers(0, 99)))
    },
    optional={
        "priority": st.integers(),
        "truncate_prompt_tokens": st.integers(-2, 140),
        "truncation_side": st.sampled_from(["left", "right"]),
        "add_special_tokens": st.booleans(),
        "rid": ANY_TEXT | st.lists(ANY_TEXT),
    },
)


def assert_answered(response: httpx.Response) -> None:
    if response.status_code == 200:
        assert_answer(response, len(response.json()["data"]))
    else:
        assert_error(response, (400, 404))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=ANY_JSON | ANY_REQUEST | LIKELY_REQUEST)
async def test_any_json(server: InProcess, body: Any) -> None:
    raw_scores = isinstance(body, dict) and any(
        body.get(k) is False for k in ("use_activation", "activation", "softmax")
    )
    response = await send(server, body)
    if not (raw_scores and response.status_code == 200):
        assert_answered(response)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60) | st.binary(max_size=8).map(lambda junk: b'{"input": "' + junk + b'"}'))
async def test_any_bytes(server: InProcess, body: bytes) -> None:
    assert_answered(await send(server, body))

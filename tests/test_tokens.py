"""Tokenize and detokenize: the ids that are scored, of any length, back and forth; and their refusals."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.sequence import ChatPrompt, Options, Prompt, TextPrompt
from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}[SEP]{% endfor %}{% if add_generation_prompt %}so:{% endif %}"
)
TEXT = "Loved the new café—coffee was great."
ERROR = ["error", "type", "code", "message", "param", "object"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, num_hidden_layers=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])  # known as special ones, as in people's checkpoints
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(folder: Path) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "tiny", "max_body_bytes": 4096, "max_request_inputs": 4}
    async with in_process(folder, engine={"max_model_len": 32}, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


async def post(server: InProcess, path: str, body: Any, status: int = 200) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def scored(server: InProcess, prompt: Prompt, options: Options | None = None) -> list[int]:
    """The ids that the engine makes of a prompt that it scores."""
    engine = server.service.engine
    assert engine is not None
    [sequence] = engine._encoder.encode([prompt], options or Options())
    return sequence.token_ids


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
@pytest.mark.parametrize("field", ["prompt", "text"])
async def test_a_text(server: InProcess, tokenizer: Tokenizer, path: str, field: str) -> None:
    encoding = tokenizer.encode(TEXT)
    answer = await post(server, path, {field: TEXT, "model": "tiny"})
    assert list(answer) == ["count", "max_model_len", "tokens", "token_strs"]
    assert answer == {
        "count": len(encoding.ids),
        "max_model_len": 32,
        "tokens": encoding.ids,
        "token_strs": None,
    }
    assert answer["tokens"] == scored(server, TextPrompt(TEXT))
    assert (await post(server, path, {field: TEXT, "return_token_strs": True}))["token_strs"] == encoding.tokens


async def test_the_count_is_what_classify_bills(server: InProcess) -> None:
    for body in ({"prompt": TEXT}, {"messages": [{"role": "user", "content": TEXT}]}):
        asked = {"input": TEXT} if "prompt" in body else body
        usage = (await server.classify(**asked)).json()["usage"]
        assert (await post(server, "/tokenize", body))["count"] == usage["prompt_tokens"]


async def test_special_tokens_are_left_out_on_request(server: InProcess, tokenizer: Tokenizer) -> None:
    answer = await post(server, "/tokenize", {"prompt": TEXT, "add_special_tokens": False})
    assert answer["tokens"] == tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert (await post(server, "/tokenize", {"prompt": ""}))["count"] == 2
    assert (await post(server, "/tokenize", {"prompt": "", "add_special_tokens": False}))["tokens"] == []


async def test_lists_and_pairs(server: InProcess, tokenizer: Tokenizer) -> None:
    pair = tokenizer.encode("the coffee", "was great")
    body = {"prompt": ["the", {"text": "the coffee", "text_pair": "was great"}], "return_token_strs": True}
    answer = await post(server, "/tokenize", body)
    one = tokenizer.encode("the")
    assert answer["tokens"] == [one.ids, pair.ids]
    assert answer["count"] == [len(one.ids), len(pair.ids)]
    assert answer["token_strs"] == [one.tokens, pair.tokens]


async def test_a_conversation_goes_through_the_template(server: InProcess) -> None:
    messages = [{"role": "user", "content": "the coffee"}]
    answer = await post(server, "/tokenize", {"messages": messages})
    assert answer["tokens"] == scored(server, ChatPrompt(messages))
    opened = await post(server, "/tokenize", {"messages": messages, "add_generation_prompt": True})
    assert opened["tokens"] == scored(server, ChatPrompt(messages, add_generation_prompt=True))
    assert opened["count"] > answer["count"]
    special = await post(server, "/tokenize", {"messages": messages, "add_special_tokens": True})
    assert special["tokens"] == scored(server, ChatPrompt(messages), Options(add_special_tokens=True))


async def test_what_is_too_long_to_score_is_counted(server: InProcess, tokenizer: Tokenizer) -> None:
    text = "coffee " * 500
    assert (await server.classify(input=text)).status_code == 400
    answer = await post(server, "/tokenize", {"prompt": text})
    assert (answer["count"], answer["max_model_len"]) == (502, 32)
    assert answer["tokens"] == tokenizer.encode(text).ids


async def test_a_server_that_truncates_counts_all_the_same(folder: Path) -> None:
    async with in_process(folder, engine={"max_model_len": 32, "truncate_prompt_tokens": -1}) as running:
        assert (await post(running, "/tokenize", {"prompt": "coffee " * 50}))["count"] == 52


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_detokenize(server: InProcess, tokenizer: Tokenizer, path: str) -> None:
    ids = tokenizer.encode("the coffee was great").ids
    whole = {"prompt": "[CLS] the coffee was great [SEP]", "text": "[CLS] the coffee was great [SEP]"}
    assert await post(server, path, {"tokens": ids, "model": "tiny"}) == whole
    assert (await post(server, path, {"tokens": ids, "skip_special_tokens": True}))["prompt"] == "the coffee was great"
    assert (await post(server, path, {"tokens": [ids, ids[1:2]]}))["text"] == [whole["text"], "the"]
    assert await post(server, path, {"tokens": []}) == {"prompt": "", "text": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/tokenize", {}, 400, "there is none of them"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt and messages"),
        ("/tokenize", {"messages": []}, 400, "at least one message"),
        ("/tokenize", {"prompt": 3}, 400, "Expected"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "`other` does not exist"),
        ("/tokenize", {"prompt": ["a"] * 5}, 413, "at most 4"),
        ("/tokenize", {"prompt": "a" * 5000}, 413, "larger than 4096 bytes"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}, 400, "chat_template"),
        ("/detokenize", {}, 400, "missing required field `tokens`"),
        ("/detokenize", {"tokens": "a"}, 400, "Expected"),
        ("/detokenize", {"tokens": [1, [2]]}, 400, "mixes"),
        ("/detokenize", {"tokens": [-1]}, 400, "out of vocabulary"),
        ("/detokenize", {"tokens": [[5], [1 << 70]]}, 400, ""),
        ("/detokenize", {"tokens": [100000]}, 400, "out of vocabulary"),
        ("/detokenize", {"tokens": [5], "model": "other"}, 404, "`other` does not exist"),
        ("/v1/detokenize", {"tokens": [[5]] * 5}, 413, "at most 4"),
    ],
)
async def test_refusals(server: InProcess, path: str, body: Any, status: int, reason: str) -> None:
    answer = await post(server, path, body, status)
    assert list(answer) == ERROR
    assert reason in answer["error"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_refusals_before_the_body_is_read(server: InProcess, path: str) -> None:
    assert (await server.client.post(path, content=b"{}")).status_code == 415
    broken = await server.client.post(path, content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, list(broken.json())) == (400, ERROR)
    get = await server.client.get(path)
    assert (get.status_code, list(get.json())) == (405, ERROR)


async def test_a_bug_is_told_without_details(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> str:
        raise ZeroDivisionError("secret")

    assert server.service.engine is not None
    monkeypatch.setattr(server.service.engine._encoder, "text", broken)
    response = await server.client.post("/detokenize", json={"tokens": [5]})
    assert (response.status_code, list(response.json())) == (500, ERROR)
    assert "secret" not in response.text


async def test_the_event_loop_is_free_meanwhile(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.service.engine is not None
    pool, hold, entered = server.service.engine._encoder, threading.Event(), threading.Event()
    encode = pool.encode

    def slow(*args: Any, **kwargs: Any) -> Any:
        entered.set()
        hold.wait(30)
        return encode(*args, **kwargs)

    monkeypatch.setattr(pool, "encode", slow)
    counting = asyncio.create_task(post(server, "/tokenize", {"prompt": TEXT}))
    try:
        assert await asyncio.to_thread(entered.wait, 30)
        assert (await server.client.get("/health")).status_code == 200
        assert not counting.done()
    finally:
        hold.set()
    assert (await counting)["count"] > 2


async def test_a_full_queue_refuses(folder: Path) -> None:
    async with in_process(folder, engine={"max_queue_tokens": 64}) as running:
        engine = running.service.engine
        assert engine is not None
        await engine._admission.enter(64)
        answer = await post(running, "/tokenize", {"prompt": TEXT}, status=429)
        assert answer["type"] == "queue_full"
        engine._admission.leave(64)
        await post(running, "/tokenize", {"prompt": TEXT})
        assert engine._admission.tokenizing == 0, "what was taken is given back"


# --- any JSON ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
PAIRS = st.fixed_dictionaries({"text": st.text(max_size=9)}, optional={"text_pair": SCALARS})
PROMPTS = SCALARS | PAIRS | st.lists(SCALARS | PAIRS, max_size=5) | st.lists(st.text(max_size=9), max_size=5)
MESSAGES = st.lists(st.fixed_dictionaries({"role": SCALARS, "content": SCALARS}) | SCALARS, max_size=3) | SCALARS
IDS = st.lists(st.integers(-2, 130) | SCALARS, max_size=5) | SCALARS
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "prompt": PROMPTS,
        "text": PROMPTS,
        "messages": MESSAGES,
        "tokens": IDS | st.lists(IDS, max_size=4),
        "add_special_tokens": SCALARS,
        "return_token_strs": SCALARS,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(["/tokenize", "/detokenize"]), body=BODIES)
async def test_any_json_is_answered_or_refused(server: InProcess, path: str, body: Any) -> None:
    content = json.dumps(body).encode()
    response = await server.client.post(path, content=content, headers={"Content-Type": "application/json"})
    answer = response.json()
    if response.status_code == 200:
        assert list(answer) == (
            ["count", "max_model_len", "tokens", "token_strs"] if path == "/tokenize" else ["prompt", "text"]
        )
    else:
        assert response.status_code in (400, 413)
        assert list(answer) == ERROR

"""The application in this process: golden requests and answers, statuses, ids, health, metrics, lost clients."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from assay import __version__
from assay.config import EngineConfig, ServerConfig
from assay.engine.engine import Engine
from assay.errors import CheckpointError, ClientGoneError, DeadlineError
from assay.server.app import build_app
from assay.server.exchange import Exchange
from assay.server.service import Service
from tests.e2e.process import InProcess, in_process
from tests.tiny import bert_vocab, save_bert, word_embeddings

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = {path.stem: path.read_text("utf-8") for path in sorted((Path(__file__).parent / "golden").glob("*.json"))}
TEXT = "Loved the new café—coffee was great."
LABELS = {0: "bad", 1: "fair", 2: "good"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint's folder, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_bert(folder, id2label=LABELS)


@pytest.fixture(scope="module")
def tiny(reference: tuple[Path, Any]) -> Path:
    return reference[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny: Path) -> AsyncIterator[InProcess]:
    """With limits so small that a golden file can exceed them."""
    limits = {"served_model_name": "golden", "max_body_bytes": 2048, "max_request_inputs": 4}
    async with in_process(tiny, engine={"max_model_len": 16}, **limits) as running:
        yield running


# --- golden files ---


def _is_probs(value: Any) -> bool:
    return _is_logits(value) and all(0 <= p <= 1 for p in value) and abs(sum(value) - 1) < 1e-5


def _is_logits(value: Any) -> bool:
    return isinstance(value, list) and len(value) == len(LABELS) and all(type(x) is float for x in value)


FITS = {
    "<id>": lambda value: re.fullmatch("classify-[0-9a-f]{32}", value),
    "<time>": lambda value: type(value) is int and abs(value - time.time()) < 600,
    "<probs>": _is_probs,
    "<logits>": lambda value: _is_logits(value) and not _is_probs(value),
    "<label>": lambda value: value in LABELS.values(),
    "<message>": lambda value: isinstance(value, str) and len(value) > 10,
    "<version>": lambda value: value == __version__,
    "<root>": lambda value: Path(value).is_dir(),
}


def masked(value: Any, golden: Any) -> Any:
    """The value, with the golden file's placeholder wherever it fits that placeholder."""
    if isinstance(golden, str) and golden in FITS:
        return golden if FITS[golden](value) else value
    if isinstance(golden, dict) and isinstance(value, dict):
        return {key: masked(item, golden.get(key)) for key, item in value.items()}
    if isinstance(golden, list) and isinstance(value, list) and len(golden) == len(value):
        return [masked(*pair) for pair in zip(value, golden, strict=True)]
    return value


@pytest.mark.parametrize("text", GOLDEN.values(), ids=GOLDEN)
async def test_golden(server: InProcess, text: str) -> None:
    golden = json.loads(text.replace("<vocab>", str(len(bert_vocab()) - 1)))
    request, expected = golden["request"], golden["response"]
    body = request["body"]
    content = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    response = await server.client.request(
        request["method"], request["path"], headers=request["headers"], content=content.encode()
    )
    assert response.status_code == expected["status"], response.text
    assert masked(response.json(), expected["body"]) == expected["body"]
    assert list(response.json()) == list(expected["body"]), "fields come in the document's order"
    assert {name: response.headers.get(name) for name in expected.get("headers", {})} == expected.get("headers", {})
    assert response.headers["content-type"] == "application/json"
    for item in response.json().get("data", []) if response.status_code == 200 else []:
        if "probs" in item:
            assert item["label"] == LABELS[item["probs"].index(max(item["probs"]))]
    if response.status_code != 200:
        assert response.json()["message"] == response.json()["error"]


async def test_scores_are_those_of_transformers(server: InProcess, reference: tuple[Path, Any]) -> None:
    folder, model = reference
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    raw = (await server.classify(input=TEXT, use_activation=False)).json()["data"][0]
    usual = (await server.classify(input=TEXT)).json()["data"][0]
    assert raw["probs"] == pytest.approx(logits.tolist(), abs=1e-4)
    assert usual["probs"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    assert raw["label"] == usual["label"] == LABELS[int(logits.argmax())]


async def test_left_and_right_truncation_keep_different_ends(server: InProcess) -> None:
    async def scores(**body: Any) -> list[float]:
        return (await server.classify(**body)).json()["data"][0]["probs"]

    ids = [5, 6, 7, 8]
    cut = {"input": ids, "truncate_prompt_tokens": 2}
    assert await scores(**cut, truncation_side="left") == pytest.approx(await scores(input=[7, 8]), abs=1e-5)
    assert await scores(**cut, truncation_side="right") == pytest.approx(await scores(input=[5, 6]), abs=1e-5)


# --- ids ---


async def test_ids_are_new_for_each_request(server: InProcess) -> None:
    ids = {(await server.classify(input="great")).json()["id"] for _ in range(3)}
    assert len(ids) == 3


async def test_a_refusal_echoes_the_request_id_too(server: InProcess) -> None:
    response = await server.client.post("/v1/classify", json={}, headers={"X-Request-Id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (400, "mine")


async def test_an_endless_request_id_is_cut(server: InProcess) -> None:
    response = await server.classify(input="great", rid="x" * 1000)
    assert response.json()["id"] == "classify-" + "x" * 128


# --- statuses that need a server in trouble ---


@contextmanager
def gate_before_forward(running: InProcess) -> Iterator[threading.Event]:
    """Holds the device back until the event is set; opened in any case at the end."""
    gate = threading.Event()
    assert running.service.engine is not None
    handle = running.service.engine.model.module.register_forward_pre_hook(lambda *_: gate.wait(20) and None)
    try:
        yield gate
    finally:
        gate.set()
        handle.remove()


async def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def is_document_error(response: Any, status: int) -> bool:
    body = response.json()
    return (
        (response.status_code, body["code"]) == (status, status)
        and isinstance(body["error"], str)
        and isinstance(body["type"], str)
    )


async def test_429_says_when_to_try_again(tiny: Path) -> None:
    async with in_process(tiny, engine={"max_queue_tokens": 20}) as running:
        with gate_before_forward(running) as gate:
            on_device = asyncio.create_task(running.classify(input=[5] * 10))
            await until(lambda: metric(running, "assay_queue_tokens") == 0 and not on_device.done())
            await asyncio.sleep(0.2)
            waiting = asyncio.create_task(running.classify(input=[5] * 15))
            await until(lambda: metric(running, "assay_queue_sequences") == 1)
            refused = await running.classify(input=[5] * 15)
            assert is_document_error(refused, 429), refused.text
            assert refused.json()["type"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            gate.set()
            assert [(await task).status_code for task in (on_device, waiting)] == [200, 200]
        assert (await running.classify(input=[5] * 15)).status_code == 200


async def test_413_for_what_no_queue_could_hold(tiny: Path) -> None:
    async with in_process(tiny, engine={"max_queue_tokens": 20}) as running:
        assert is_document_error(await running.classify(input=[[5] * 10] * 3), 413)


async def test_a_bug_is_a_500_without_details(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("secret at /etc/passwd")

    async with in_process(tiny) as running:
        with monkeypatch.context() as patch:
            patch.setattr(running.service.engine, "classify", broken)
            response = await running.classify(input="great")
        assert is_document_error(response, 500)
        assert not re.search("secret|passwd|Traceback|RuntimeError|[.]py", response.text)
        assert (await running.classify(input="great")).status_code == 200


async def test_a_bug_is_counted_and_keeps_its_request_id(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("secret at /etc/passwd")

    async with in_process(tiny) as running:
        monkeypatch.setattr(running.service.engine, "classify", broken)
        response = await running.client.post("/v1/classify", json={"input": "a"}, headers={"X-Request-Id": "mine"})
        assert response.status_code == 500
        assert metric(running, "assay_requests_total", dialect="classify", status="500") == 1
        assert metric(running, "assay_errors_total", type="internal_error") == 1
        assert response.headers.get("x-request-id") == "mine"


async def test_scores_that_are_not_numbers_are_a_500(tiny: Path) -> None:
    async with in_process(tiny) as running:
        assert running.service.engine is not None
        words = word_embeddings(running.service.engine.model)
        kept = words.clone()
        words.fill_(float("nan"))
        response = await running.classify(input=["great", "coffee"])
        assert is_document_error(response, 500), response.text
        words.copy_(kept)
        assert (await running.classify(input="great")).status_code == 200


async def test_a_dead_engine_tells_everyone(tiny: Path) -> None:
    def dies(*_: Any) -> None:
        gate.wait(20)
        raise RuntimeError("secret at /etc/passwd")

    gate = threading.Event()
    async with in_process(tiny) as running:
        assert running.service.engine is not None
        running.service.engine.model.module.register_forward_pre_hook(dies)
        waiting = [asyncio.create_task(running.classify(input="great"))]
        await asyncio.sleep(0.2)  # it is on the device; the others stay in the queue
        waiting += [asyncio.create_task(running.classify(input=text)) for text in ("coffee", "new")]
        await until(lambda: metric(running, "assay_queue_sequences") == 2)
        gate.set()
        for task in waiting:
            response = await asyncio.wait_for(task, 10)
            assert is_document_error(response, 500)
            assert "secret" not in response.text
        later = await running.classify(input="great")
        assert is_document_error(later, 503)
        health = await running.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "dead"})


async def test_503_while_loading_then_200(tiny: Path) -> None:
    def slow(*arguments: Any) -> Engine:
        gate.wait(20)
        return Engine.load(*arguments)

    gate = threading.Event()
    async with in_process(tiny, load=slow, wait=False) as running:
        health = await running.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert is_document_error(await running.classify(input="great"), 503)
        assert is_document_error(await running.classify(input=""), 400)
        models = (await running.client.get("/v1/models")).json()
        assert (models["data"][0]["id"], models["data"][0]["max_model_len"]) == (str(tiny), None)
        gate.set()
        await until(lambda: running.service.status == "ok")
        assert (await running.client.get("/health")).status_code == 200
        assert (await running.classify(input="great")).status_code == 200


@pytest.mark.parametrize("error", [CheckpointError("no good"), KeyError("weight_map"), MemoryError()], ids=repr)
async def test_however_loading_fails_somebody_hears_of_it(tiny: Path, error: Exception) -> None:
    def broken(*_: Any) -> Any:
        raise error

    heard: asyncio.Queue[Exception | None] = asyncio.Queue()
    app = build_app(Service(ServerConfig(), EngineConfig(model=str(tiny)), broken), heard.put_nowait)
    async with app.router.lifespan_context(app):
        assert await asyncio.wait_for(heard.get(), 5) is error


async def test_draining_answers_what_was_accepted_and_refuses_the_rest(tiny: Path) -> None:
    async with in_process(tiny) as running:
        with gate_before_forward(running) as gate:
            accepted = [asyncio.create_task(running.classify(input="great"))]
            await asyncio.sleep(0.2)  # it is on the device; the others stay in the queue
            accepted += [asyncio.create_task(running.classify(input=text)) for text in ("coffee", "new")]
            await until(lambda: metric(running, "assay_queue_sequences") == 2)
            drained = asyncio.create_task(running.service.drain())
            await asyncio.sleep(0.1)
            refused = await running.classify(input="great")
            assert is_document_error(refused, 503)
            health = await running.client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            assert not drained.done()
            gate.set()
            await asyncio.wait_for(drained, 10)
        assert [(await task).status_code for task in accepted] == [200] * 3


# --- metrics ---


def metric(running: InProcess, name: str, **labels: str) -> float:
    """A sample's value, 0 where it has not been counted yet."""
    for family in text_string_to_metric_families(running.service.metrics.render().decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


async def test_metrics_move_with_requests(tiny: Path) -> None:
    async with in_process(tiny) as running:
        response = await running.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        families = {family.name for family in text_string_to_metric_families(response.text)}
        assert families >= {
            "assay_requests",
            "assay_request_seconds",
            "assay_errors",
            "assay_stage_seconds",
            "assay_batch_tokens",
            "assay_queue_tokens",
            "assay_queue_sequences",
        }
        await running.classify(input=["great coffee", "new"])
        await running.classify(input=[5, 6, 7])
        await running.classify(input="")
        await running.classify(input="great", model="nope")
        await running.client.get("/nope")
        assert metric(running, "assay_requests_total", dialect="classify", status="200") == 2
        assert metric(running, "assay_requests_total", dialect="classify", status="400") == 1
        assert metric(running, "assay_requests_total", dialect="classify", status="404") == 1
        assert metric(running, "assay_requests_total", dialect="other", status="404") == 1
        assert metric(running, "assay_errors_total", type="invalid_request_error") == 1
        assert metric(running, "assay_errors_total", type="model_not_found") == 1
        assert metric(running, "assay_errors_total", type="not_found") == 1
        assert metric(running, "assay_sequences_total") == 3
        assert metric(running, "assay_tokens_total") == 4 + 3 + 3
        assert metric(running, "assay_batch_tokens_sum") == 4 + 3 + 3
        assert metric(running, "assay_batch_sequences_sum") == 3
        for status_class in ("2xx", "4xx"):
            assert metric(running, "assay_request_seconds_count", dialect="classify", status_class=status_class) == 2
        for stage in ("tokenize", "queue", "inference"):
            assert metric(running, "assay_stage_seconds_count", stage=stage) == 2
            assert 0 <= metric(running, "assay_stage_seconds_sum", stage=stage) < 10
        assert metric(running, "assay_queue_tokens") == metric(running, "assay_queue_sequences") == 0


async def test_health_and_metrics_do_not_wait_behind_inference(tiny: Path) -> None:
    async with in_process(tiny) as running:
        with gate_before_forward(running):
            task = asyncio.create_task(running.classify(input="great"))
            await asyncio.sleep(0.1)
            for path in ("/health", "/metrics", "/v1/models", "/version"):
                assert (await asyncio.wait_for(running.client.get(path), 2)).status_code == 200
            assert not task.done()
        assert (await task).status_code == 200


# --- clients that hang up ---


async def call_and_hang_up(app: Any, messages: list[dict[str, Any]], hang_up: asyncio.Event) -> list[dict[str, Any]]:
    """Drive the application as a server would whose client goes away once `hang_up` is set."""
    incoming, sent, exchange = iter(messages), [], Exchange()

    async def receive() -> dict[str, Any]:
        for message in incoming:
            return message
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def leave() -> None:
        await hang_up.wait()
        exchange.leave()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "exchange": exchange,
    }
    leaving = asyncio.create_task(leave())
    await asyncio.wait_for(app(scope, receive, send), 10)
    leaving.cancel()
    return sent


async def test_a_client_that_hangs_up_is_not_computed(tiny: Path) -> None:
    body = json.dumps({"input": ["great", "coffee"]}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    async with in_process(tiny) as running:
        with gate_before_forward(running) as gate:
            on_device = asyncio.create_task(running.classify(input="new"))
            await asyncio.sleep(0.2)
            hang_up = asyncio.Event()
            gone = asyncio.create_task(call_and_hang_up(running.app, messages, hang_up))
            await until(lambda: metric(running, "assay_queue_sequences") == 2)
            hang_up.set()
            await gone
            assert metric(running, "assay_queue_sequences") == metric(running, "assay_queue_tokens") == 0
            gate.set()
            assert (await on_device).status_code == 200
        assert (await running.classify(input="new")).status_code == 200
        assert metric(running, "assay_sequences_total") == 2, "the two that were abandoned never ran"
        assert metric(running, "assay_requests_total", status="499") == 1
        assert metric(running, "assay_errors_total", type="client_closed_request") == 1


async def test_a_client_that_hangs_up_within_its_body(server: InProcess) -> None:
    hang_up = asyncio.Event()
    hang_up.set()
    half = [{"type": "http.request", "body": b'{"input": ', "more_body": True}]
    sent = await call_and_hang_up(server.app, half, hang_up)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] in ([], [499])
    assert (await server.classify(input="great")).status_code == 200


async def test_work_that_fails_as_it_is_given_up_fails_as_any_work() -> None:
    """Its client hangs up and its time limit is over in the same moment: no stray error reaches the event loop."""
    exchange = Exchange()

    async def late() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise DeadlineError("too late") from None

    asyncio.get_running_loop().call_soon(exchange.leave)
    with pytest.raises(DeadlineError), exchange:
        await late()


async def test_a_task_that_is_cancelled_from_elsewhere_is_not_taken_for_a_client_that_left() -> None:
    async def work() -> None:
        with Exchange():
            await asyncio.sleep(60)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_has_left_cancels_nothing_but_the_work() -> None:
    exchange = Exchange()
    asyncio.get_running_loop().call_soon(exchange.leave)
    with pytest.raises(ClientGoneError), exchange:
        await asyncio.sleep(60)
    await asyncio.sleep(0)  # what follows, an answer that nobody reads, runs to its end
    exchange.leave()
    await asyncio.sleep(0)

"""Seeing a request: its id on every answer, its line in the log, its stages in the headers, and never its text."""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.config import ServerConfig
from assay.errors import ConfigError
from assay.metrics import Metrics
from assay.sequence import Prediction, Timings
from assay.server import access_log
from assay.server.access_log import write_access_log
from assay.server.observation import Observation
from assay.server.observe import Observe
from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "Zanzibar"  # stands in a text, a header and a key; no log may have it
SCORED = [
    ("/v1/classify", {"input": "great coffee"}),
    ("/classify", {"text": "great coffee"}),
    ("/classify", {"inputs": "great coffee"}),
    ("/v1/moderations", {"input": "great coffee"}),
    ("/predict", {"inputs": "great coffee"}),
    ("/api/v1/text/contents", {"contents": ["great coffee"], "detector_params": {}}),
    ("/pooling", {"input": "great coffee"}),
    ("/v1/models/tiny:predict", {"instances": ["great coffee"]}),
    ("/beta/litellm_basic_guardrail_api", {"texts": ["great coffee"], "input_type": "request"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"}, num_hidden_layers=1)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(folder: Path) -> AsyncIterator[InProcess]:
    async with in_process(folder, served_model_name="tiny", max_body_bytes=4096) as running:
        yield running


async def break_engine(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(prompts: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"cannot score {prompts}")

    monkeypatch.setattr(server.service.engine, "classify", broken)


# --- ids ---


async def everything(server: InProcess, headers: dict[str, str]) -> list[Any]:
    """An answer of every kind: scores, refusals by parser, router and limits, and what is no dialect."""
    client = server.client
    return [
        await client.post("/v1/classify", json={"input": "great"}, headers=headers),
        await client.post("/v1/classify", json={}, headers=headers),
        await client.post("/v1/classify", content="{", headers=headers | {"content-type": "application/json"}),
        await client.post("/v1/classify", content="x", headers=headers),
        await client.post("/v1/classify", json={"input": "great" * 1000}, headers=headers),
        await client.post("/v1/classify", json={"input": "great", "model": "nope"}, headers=headers),
        await client.get("/v1/classify", headers=headers),
        await client.get("/nope", headers=headers),
        await client.post("/health", headers=headers),
        *[await client.get(path, headers=headers) for path in ("/health", "/metrics", "/v1/models", "/docs", "/v2")],
    ]


async def test_every_answer_has_the_callers_id(server: InProcess) -> None:
    answers = await everything(server, {"X-Request-Id": "mine-1"})
    assert {answer.headers.get("x-request-id") for answer in answers} == {"mine-1"}
    assert {answer.status_code for answer in answers} >= {200, 400, 404, 405, 413, 415}


async def test_every_answer_without_one_gets_a_new_id(server: InProcess) -> None:
    ids = [answer.headers["x-request-id"] for answer in await everything(server, {})]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert len(set(ids)) == len(ids)


async def test_refusals_of_strangers_have_ids_too(folder: Path) -> None:
    async with in_process(folder, api_keys=(SECRET,)) as running:
        response = await running.client.post("/v1/classify", json={}, headers={"X-Request-Id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (401, "mine")


@pytest.mark.parametrize(("given_id", "echoed"), [("x" * 500, "x" * 128), ("  a b  ", "a b"), ("~!", "~!")])
async def test_a_long_id_is_cut(server: InProcess, given_id: str, echoed: str) -> None:
    response = await server.client.post("/v1/classify", json={"input": "great"}, headers={"X-Request-Id": given_id})
    assert response.headers["x-request-id"] == echoed
    assert response.json()["id"] == f"classify-{echoed}"


@pytest.mark.parametrize("given_id", [b"\xff\xfe", b"a\tb", "né".encode(), b"", b"   ", b"a\x7fb"])
async def test_an_id_that_is_not_printable_ascii_is_replaced(server: InProcess, given_id: bytes) -> None:
    headers = {b"X-Request-Id": given_id}
    response = await server.client.post("/v1/classify", json={"input": "great"}, headers=headers)
    echoed = response.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", echoed)
    assert response.json()["id"] == f"classify-{echoed}"


@pytest.mark.parametrize("body_id", ["abc", "x" * 300])
async def test_the_bodys_id_stands_where_no_header_does(server: InProcess, body_id: str) -> None:
    response = await server.classify(input="great", request_id=body_id)
    assert response.headers["x-request-id"] == body_id[:128]
    assert response.json()["id"] == f"classify-{body_id[:128]}"


async def test_a_bodys_id_that_no_header_can_carry_stays_in_the_body(server: InProcess) -> None:
    response = await server.classify(input="great", request_id="né\r\nx-evil: 1")
    assert response.json()["id"] == "classify-né\r\nx-evil: 1"
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert "x-evil" not in response.headers


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_id=st.text() | st.text(alphabet=st.characters(max_codepoint=127)))
async def test_any_id_gives_one_that_fits_a_header(server: InProcess, given_id: str) -> None:
    answer = await server.classify(input="great", rid=given_id)
    echoed = answer.headers["x-request-id"]
    assert 0 < len(echoed) <= 128
    assert echoed.isascii()
    assert echoed.isprintable()


# --- failures ---


@pytest.mark.parametrize(("path", "body"), SCORED)
async def test_a_failures_answer_and_its_log_share_the_id(
    server: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, body: Any
) -> None:
    await break_engine(server, monkeypatch)
    response = await server.client.post(path, json=body, headers={"X-Request-Id": "mine-7"})
    assert response.status_code in (424, 500)
    assert "(request id mine-7)" in response.text
    (record,) = [record for record in caplog.records if record.name == "assay.server"]
    message = record.getMessage()
    assert message.startswith("Request mine-7 failed: Internal server error")
    assert message.endswith("RuntimeError")
    assert "in broken" in message, "the frames are there"
    assert record.exc_info is None
    assert "great" not in caplog.text, "the exception's message quotes the text, and is not written"


async def test_a_bug_outside_the_dialects_is_an_answer_too(
    server: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bytes:
        raise ValueError(SECRET)

    monkeypatch.setattr(server.service.metrics, "render", broken)
    response = await server.client.get("/metrics", headers={"X-Request-Id": "mine-8"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine-8")
    assert "(request id mine-8)" in response.json()["error"]
    assert "Request mine-8 failed" in caplog.text
    assert SECRET not in caplog.text + response.text


# --- times in headers ---


@pytest.mark.parametrize(("path", "body"), SCORED)
async def test_every_dialects_answer_has_its_stages(server: InProcess, path: str, body: Any) -> None:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    for stage in ("tokenization", "queue", "inference"):
        assert response.headers[f"x-{stage}-time"].isdecimal()


async def test_an_answer_to_nothing_has_them_too(server: InProcess, folder: Path) -> None:
    save_bert(folder / "one", num_labels=1, num_hidden_layers=1)
    async with in_process(folder / "one") as running:
        response = await running.client.post("/get_reward", json={"query": []})
    assert response.status_code == 200, response.text
    assert response.headers["x-inference-time"] == "0"


async def test_a_refusal_has_none(server: InProcess) -> None:
    response = await server.classify()
    assert response.status_code == 400
    assert "x-queue-time" not in response.headers


async def test_times_are_means_in_milliseconds() -> None:
    observation = Observation("id", "POST", "/", None, [])
    timings = [Timings(0.0104, 0.100, 0.020), Timings(0.0104, 0.300, 0.041)]
    observation.predictions = [Prediction("x", [1.0], [1.0], 5, one) for one in timings]
    assert observation.timing_headers() == [
        (b"x-tokenization-time", b"10"),
        (b"x-queue-time", b"200"),
        (b"x-inference-time", b"30"),
    ]


# --- the access log ---


@asynccontextmanager
async def logged(folder: Path, **config: Any) -> AsyncIterator[tuple[InProcess, StringIO]]:
    """A server, and what its access log has written once it has ended, set up as the command line does it."""
    logger, stream = logging.getLogger("assay.access"), StringIO()
    kept = logger.handlers, logger.propagate, logger.level
    write_access_log(ServerConfig(**config), stream)
    try:
        async with in_process(folder, **config) as running:
            yield running, stream
    finally:
        logger.handlers, logger.propagate = kept[0], kept[1]
        logger.setLevel(kept[2])


@pytest.mark.parametrize(
    ("trusted", "client"),
    [
        (("127.0.0.1",), "203.0.113.7:0"),
        (("10.0.0.0/8", "127.0.0.0/8"), "203.0.113.7:0"),
        (("*",), "203.0.113.7:0"),
        (("10.0.0.1",), "127.0.0.1:"),
        ((), "127.0.0.1:"),
    ],
)
async def test_a_trusted_proxy_says_who_asks(folder: Path, trusted: tuple[str, ...], client: str) -> None:
    async with logged(folder, trusted_proxies=trusted) as (running, stream):
        headers = {"X-Forwarded-For": "203.0.113.7"}
        assert (await running.client.get("/v1/models", headers=headers)).status_code == 200
        assert (await running.classify(input="great")).status_code == 200
    proxied, direct = map(json.loads, stream.getvalue().splitlines())
    assert proxied["client"].startswith(client)
    assert direct["client"].startswith("127.0.0.1:")


async def test_a_scored_request_is_one_json_object(folder: Path) -> None:
    async with logged(folder, served_model_name="tiny") as (running, stream):
        response = await running.classify(input=["great", "new coffee"])
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("client").startswith("127.0.0.1:")
    stages = [line.pop(f"{stage}_ms") for stage in ("tokenize", "queue", "inference")]
    assert all(isinstance(milliseconds, float) and milliseconds >= 0 for milliseconds in stages)
    assert line.pop("duration_ms") >= stages[2] > 0
    assert line == {
        "request_id": response.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/classify",
        "dialect": "classify",
        "status": 200,
        "model": "tiny",
        "prompts": 2,
        "tokens": response.json()["usage"]["total_tokens"],
    }


async def test_lines_come_while_the_server_runs(folder: Path) -> None:
    async with logged(folder) as (running, stream):
        for count in (1, 2):
            await running.classify(input="great")
            deadline = time.monotonic() + 10
            while len(stream.getvalue().splitlines()) < count:
                assert time.monotonic() < deadline, "waited in vain"
                await asyncio.sleep(0.01)


async def test_what_is_refused_has_its_type(folder: Path) -> None:
    async with logged(folder) as (running, stream):
        await running.classify(input="")
        await running.classify(input="great", model="nope")
        await running.client.get("/nope")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert (first["status"], first["error"], first["dialect"]) == (400, "invalid_request_error", "classify")
    assert (second["status"], second["error"], "model" in second) == (404, "model_not_found", False)
    assert (third["status"], third["error"], third["dialect"]) == (404, "not_found", "other")
    assert not {"tokens", "queue_ms", "inference_ms"} & set(first)


async def test_strangers_are_logged(folder: Path) -> None:
    async with logged(folder, api_keys=("right",)) as (running, stream):
        await running.client.post("/v1/classify", json={}, headers={"x-api-key": SECRET})
    line = json.loads(stream.getvalue())
    assert (line["status"], line["error"], line["dialect"]) == (401, "unauthorized", "classify")
    assert SECRET not in stream.getvalue()


async def test_probes_are_logged_only_when_they_fail(folder: Path) -> None:
    async with logged(folder) as (running, stream):
        await running.client.get("/health")
        await running.client.get("/metrics")
        running.service.engines[0].refuse()
        await running.client.get("/health")
    assert [json.loads(line)["status"] for line in stream.getvalue().splitlines()] == [503]


@pytest.mark.parametrize(("level", "paths"), [("debug", ["/metrics", "/version"]), ("error", ["/version"])])
async def test_the_log_level_hides_no_access_and_shows_probes(folder: Path, level: str, paths: list[str]) -> None:
    async with logged(folder, log_level=level) as (running, stream):
        await running.client.get("/metrics")
        await running.client.get("/version")
    assert [json.loads(line)["path"] for line in stream.getvalue().splitlines()] == paths


@pytest.mark.parametrize("form", ["json", "text"])
async def test_no_text_no_header_no_key(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="assay")
    headers = {"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET, "User-Agent": SECRET, "Cookie": SECRET}
    async with logged(folder, access_log=form, api_keys=(SECRET,)) as (running, stream):
        for body in (
            {"input": SECRET},
            {"input": [f"great {SECRET}", SECRET], "user": SECRET},
            {"input": SECRET, "model": SECRET},
            {"input": SECRET, "truncation_side": SECRET},
            {"messages": [{"role": "user", "content": SECRET}]},
            {SECRET: SECRET},
        ):
            await running.client.post("/v1/classify", json=body, headers=headers, params={"q": SECRET})
        await break_engine(running, monkeypatch)
        response = await running.client.post("/v1/classify", json={"input": SECRET}, headers=headers)
        assert response.status_code == 500
    assert len(stream.getvalue().splitlines()) == 7
    assert SECRET not in stream.getvalue() + caplog.text


async def test_log_inputs_writes_texts_cut(folder: Path) -> None:
    async with logged(folder, log_inputs=True) as (running, stream):
        pair = {"text": "query", "text_pair": "document"}
        await running.classify(input=["great\ncoffee", "x" * 900, pair])
        await running.classify(input=[[5, 6]])
        await running.classify(input=["new"] * 100)
    texts, ids, many = (json.loads(line)["inputs"] for line in stream.getvalue().splitlines())
    assert texts == ["great\ncoffee", "x" * 200, "query | document"]
    assert ids == ["[5, 6]"]
    assert many == ["new"] * 32


async def test_the_text_form_is_one_line_whatever_is_asked(folder: Path) -> None:
    async with logged(folder, access_log="text", log_inputs=True) as (running, stream):
        headers = {"X-Request-Id": "a b"}
        await running.client.post("/v1/classify", json={"input": "great\ncoffee"}, headers=headers)
        await running.client.get("/no%0Ape%22")
    scored, refused = stream.getvalue().splitlines()
    head = r'[-\d]+T[:\d]+\.\d{3}Z 127\.0\.0\.1:\d+ "POST /v1/classify" 200 [\d.]+ ms request_id="a b" '
    assert re.match(head, scored)
    assert 'inputs=["great\\ncoffee"]' in scored
    assert '"GET /no\\npe\\"" 404' in refused
    assert "error=not_found" in refused


async def test_none_writes_nothing(folder: Path) -> None:
    async with logged(folder, access_log="none", log_level="debug") as (running, stream):
        await running.classify(input="great")
    assert stream.getvalue() == ""


class Watch:
    """A watcher that keeps what it hears, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.heard: list[Observation] = []
        self._fails = fails

    def __call__(self, observation: Observation) -> None:
        self.heard.append(observation)
        if self._fails:
            raise RuntimeError(SECRET)

    def close(self) -> None:
        pass


async def observed(ending: type[BaseException] | None, *watchers: Watch) -> list[Any]:
    """What is sent where an application answers 204, or ends with an error."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if ending is not None:
            raise ending
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def failed(*_: Any) -> Any:
        raise AssertionError("that is for exceptions")

    async def send(message: Any) -> None:
        sent.append(message)

    observe = Observe(app, Metrics(), failed, watchers)
    await observe({"type": "http", "method": "GET", "path": "/x", "headers": []}, None, send)  # type: ignore[arg-type]
    return sent


async def test_a_request_that_was_given_up_is_told() -> None:
    watch = Watch()
    with pytest.raises(asyncio.CancelledError):
        await observed(asyncio.CancelledError, watch)
    assert [observation.status for observation in watch.heard] == [499]


async def test_a_watcher_that_fails_harms_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    (sent,) = await observed(None, Watch(fails=True), watch)
    assert sent["status"] == 204
    assert [observation.status for observation in watch.heard] == [204], "the next one hears of it all the same"
    assert "A watcher failed: RuntimeError" in caplog.text
    assert SECRET not in caplog.text


async def test_a_log_that_nobody_reads_drops_lines_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="assay.access")
    monkeypatch.setattr(access_log, "_MOST_WAITING", 3)
    monkeypatch.setattr(access_log, "_PAUSE_SECONDS", 60)
    log = access_log.AccessLog(ServerConfig())
    for number in range(5):
        log(Observation(f"id-{number}", "GET", "/x", None, []))
    log.close()
    assert "id-2" in caplog.text
    assert "id-3" not in caplog.text
    assert "2 lines were dropped" in caplog.text


# --- settings ---


async def test_inputs_need_a_log() -> None:
    with pytest.raises(ConfigError, match="access_log is none"):
        ServerConfig(access_log="none", log_inputs=True)


async def test_unknown_forms_are_refused() -> None:
    with pytest.raises(ConfigError, match="none, json, text"):
        ServerConfig(access_log="xml")  # type: ignore[arg-type]

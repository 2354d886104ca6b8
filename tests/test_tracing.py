"""Traces: one span a request, under the caller's, with its stages below; sent to a collector; no text in them."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from assay import __version__
from assay.config import ServerConfig
from assay.errors import ConfigError
from assay.sequence import Prediction, Timings
from assay.server.observation import Observation
from assay.server.observe import open_tracing
from assay.server.tracing import Tracing, traces_url
from tests.e2e.process import InProcess, in_process, run_assay, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "Zanzibar"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"}, num_hidden_layers=1)
    return folder


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What a server sends, kept; it is whole once the server has ended."""
    kept = InMemorySpanExporter()
    monkeypatch.setattr("assay.server.app.open_tracing", lambda config: Tracing("http://unused", kept))
    return kept


@pytest_asyncio.fixture(loop_scope="module")
async def server(folder: Path, exporter: InMemorySpanExporter) -> AsyncIterator[InProcess]:
    async with in_process(folder, served_model_name="tiny") as running:
        yield running


async def spans(server: InProcess, exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """Of all requests so far."""
    watchers = next(m for m in server.app.user_middleware if "watchers" in m.kwargs).kwargs["watchers"]
    await asyncio.to_thread(watchers[0]._provider.force_flush)
    return list(exporter.get_finished_spans())


async def test_a_request_is_a_span_with_its_stages_below(server: InProcess, exporter: InMemorySpanExporter) -> None:
    response = await server.classify(input=["great", "new coffee"])
    *stages, root = sorted(await spans(server, exporter), key=lambda span: span.kind is SpanKind.SERVER)
    assert (root.name, root.kind, root.parent) == ("POST classify", SpanKind.SERVER, None)
    attributes = dict(root.attributes or {})
    assert attributes.pop("client.address") == "127.0.0.1"
    assert attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "assay.request_id": response.headers["x-request-id"],
        "assay.dialect": "classify",
        "assay.model": "tiny",
        "assay.prompts": 2,
        "assay.tokens": response.json()["usage"]["total_tokens"],
    }
    assert {span.name for span in stages} == {"tokenize", "queue", "inference"}
    for span in stages:
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator]
    assert root.resource.attributes["service.name"] == "assay"
    assert root.resource.attributes["service.version"] == __version__


async def test_stages_follow_each_other() -> None:
    kept = InMemorySpanExporter()
    tracing = Tracing("http://unused", kept)
    observation = Observation("id", "POST", "/x", None, [], started=100.0, started_ns=5_000_000_000, seconds=2.0)
    observation.status, observation.scoring = 200, 100.5
    quick, slow = Timings(0.1, 0.2, 0.3), Timings(0.1, 0.7, 0.4)
    observation.predictions = [Prediction("x", [], [], 1, quick), Prediction("x", [], [], 1, slow)]
    tracing(observation)
    tracing.close()
    times = {span.name: (span.start_time, span.end_time) for span in kept.get_finished_spans()}
    assert {name: tuple(round(t / 1e6) for t in pair) for name, pair in times.items()} == {  # type: ignore[operator]
        "tokenize": (5500, 5600),
        "queue": (5600, 6300),
        "inference": (6300, 6700),
        "POST other": (5000, 7000),
    }


async def test_the_callers_trace_goes_on(server: InProcess, exporter: InMemorySpanExporter) -> None:
    await server.client.post("/v1/classify", json={"input": "great"}, headers={"traceparent": TRACEPARENT})
    root = next(span for span in await spans(server, exporter) if span.kind is SpanKind.SERVER)
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)


@pytest.mark.parametrize("header", [f"00-{TRACE}-{PARENT}-00", None])
async def test_a_caller_that_does_not_sample_is_heeded(
    server: InProcess, exporter: InMemorySpanExporter, header: str | None
) -> None:
    headers = {"traceparent": header} if header else {}
    await server.client.post("/v1/classify", json={"input": "great"}, headers=headers)
    assert len(await spans(server, exporter)) == (0 if header else 4)


@pytest.mark.parametrize("header", ["", "x", "00-" + "0" * 32 + f"-{PARENT}-01", "é", "00-" * 1000])
async def test_a_broken_traceparent_begins_a_new_trace(
    server: InProcess, exporter: InMemorySpanExporter, header: str
) -> None:
    headers = {b"traceparent": header.encode()}
    response = await server.client.post("/v1/classify", json={"input": "great"}, headers=headers)
    assert response.status_code == 200
    root = next(span for span in await spans(server, exporter) if span.kind is SpanKind.SERVER)
    assert root.parent is None


async def test_refusals_failures_and_probes(
    server: InProcess, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(prompts: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError(str(prompts))

    await server.classify(input="")
    await server.client.get("/nope")
    await server.client.get("/health")
    monkeypatch.setattr(server.service.engine, "classify", broken)
    await server.classify(input=SECRET)
    found = await spans(server, exporter)
    assert [(span.name, (span.attributes or {}).get("error.type"), span.status.status_code) for span in found] == [
        ("POST classify", "invalid_request_error", StatusCode.UNSET),
        ("GET other", "not_found", StatusCode.UNSET),
        ("POST classify", "internal_error", StatusCode.ERROR),
    ]


async def test_no_text_and_no_headers(server: InProcess, exporter: InMemorySpanExporter) -> None:
    headers = {"Authorization": SECRET, "User-Agent": SECRET, "X-Api-Key": SECRET}
    for body in ({"input": SECRET}, {"input": SECRET, "model": SECRET}, {"input": SECRET, "truncation_side": SECRET}):
        await server.client.post("/v1/classify", json=body, headers=headers, params={"q": SECRET})
    await server.client.request(SECRET, "/v1/classify")
    found = await spans(server, exporter)
    assert len([span for span in found if span.kind is SpanKind.SERVER]) == 4
    assert not [span.name for span in found if SECRET in span.to_json()]
    assert {span.name for span in found} == {"POST classify", "HTTP classify", "tokenize", "queue", "inference"}


async def test_the_access_log_has_the_trace(
    folder: Path, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="assay.access")
    async with in_process(folder) as running:
        await running.client.post("/v1/classify", json={"input": "great"}, headers={"traceparent": TRACEPARENT})
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "assay.access"]
    assert line["trace_id"] == TRACE


# --- the collector ---


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """An HTTP server that takes OTLP: its address, and (path, request) as they come."""
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


async def test_spans_reach_a_collector(folder: Path) -> None:
    with collector() as (url, received):
        async with in_process(folder, otlp_endpoint=url) as running:
            await running.classify(input=SECRET)
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = [span for _, request in received for r in request.resource_spans for s in r.scope_spans for span in s.spans]
    assert {span.name for span in sent} == {"POST classify", "tokenize", "queue", "inference"}
    assert SECRET not in str(received)


async def test_a_collector_that_is_not_there_harms_nobody(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(60), in_process(folder, otlp_endpoint="http://127.0.0.1:9") as running:
        assert (await running.classify(input="great")).status_code == 200


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ],
)
async def test_where_traces_go(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


# --- asked for, or not there ---


@pytest.mark.parametrize("endpoint", ["", "localhost:4318", "grpc://c:4317"])
async def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must begin with http"):
        ServerConfig(otlp_endpoint=endpoint)


async def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(ServerConfig()) is None
    monkeypatch.delitem(sys.modules, "assay.server.tracing")
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'assay\[otel\]'"):
        open_tracing(ServerConfig(otlp_endpoint="http://127.0.0.1:4318"))


def imported(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


async def test_opentelemetry_is_not_imported_unless_asked_for() -> None:
    assert imported("import sys, assay.server.serve; print('opentelemetry' in sys.modules)") == "False"


@pytest.mark.slow
async def test_a_real_server_sends_its_spans_before_it_ends(folder: Path) -> None:
    with collector() as (url, received):
        with serving(folder, "--otlp-endpoint", url) as running:
            await asyncio.to_thread(OTLPSpanExporter, url)  # the extra is there
            response = await asyncio.to_thread(httpx.post, f"{running.url}/v1/classify", json={"input": "great"})
            assert response.status_code == 200
            running.process.terminate()
            assert running.wait() == 0
            assert '"trace_id":"' in running.log()
        names = {s.name for _, q in received for r in q.resource_spans for c in r.scope_spans for s in c.spans}
    assert names == {"POST classify", "tokenize", "queue", "inference"}


@pytest.mark.slow
async def test_the_command_line_refuses_what_is_no_url(folder: Path) -> None:
    done = await asyncio.to_thread(run_assay, "serve", str(folder), "--otlp-endpoint", "localhost:4318")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1

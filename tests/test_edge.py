"""The open network's edge, over real sockets: slow, endless, malformed requests, hosts, origins, what errors show."""

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from uvicorn.server import ServerState

from assay.config import ServerConfig
from assay.dialects import DIALECTS
from assay.errors import ConfigError
from assay.server.listener import listening
from assay.server.outbox import Turn
from assay.server.protocol import MAX_PIPELINED, EdgeProtocol
from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b'{"input": "great"}'
GET = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BOUND = 20.0  # seconds in which whatever must happen does, on a machine that is busy with other things
LIMITS = {
    "served_model_name": "tiny",
    "header_timeout": 1.0,
    "body_timeout": 1.0,
    "write_timeout": 1.0,
    "max_connections": 12,
    "max_header_bytes": 12_000,
    "max_body_bytes": 100_000,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder)
    return folder


@dataclass
class Edge:
    """The application behind EdgeProtocol on a port of its own."""

    running: InProcess
    port: int
    state: ServerState

    async def closed(self) -> None:
        """Once the server has no connection left. Raises TimeoutError."""
        async with asyncio.timeout(BOUND):
            while self.state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving_edge(tiny: Path, **limits: Any) -> AsyncIterator[Edge]:
    async with in_process(tiny, **LIMITS | limits) as running:
        config = uvicorn.Config(running.app, http=EdgeProtocol, ws="none", lifespan="off", log_config=None)
        state = ServerState()
        service = running.service
        loop = asyncio.get_running_loop()
        turn = Turn(loop)
        server = await loop.create_server(
            lambda: EdgeProtocol(config, state, {}, service.config, service.metrics, turn), "127.0.0.1", 0
        )
        async with server:
            edge = Edge(running, server.sockets[0].getsockname()[1], state)
            try:
                yield edge
            finally:
                for connection in list(state.connections):
                    connection.transport.abort()
                await edge.closed()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tiny: Path) -> AsyncIterator[Edge]:
    async with serving_edge(tiny) as running:
        yield running


Answer = tuple[int, dict[bytes, bytes], bytes]


async def say(edge: Edge, *parts: bytes, pause: float = 0.02) -> list[Answer]:
    """Send parts, reading answers meanwhile, until the server closes. Raises TimeoutError where it does not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    answers: list[Answer] = []
    reading = asyncio.create_task(read_into(answers, reader))
    try:
        async with asyncio.timeout(BOUND):
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause)
            await reading
    finally:
        reading.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answers


async def read_into(answers: list[Answer], reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while status := await reader.readline():
            headers = {}
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.strip().partition(b": ")
                headers[name.lower()] = value
            body = await reader.readexactly(int(headers[b"content-length"]))
            answers.append((int(status.split()[1]), headers, body))


async def refused(edge: Edge, *parts: bytes) -> tuple[int, str]:
    """Status and message of the one answer: an error in the document's shape, after which the server closes."""
    answers = await say(edge, *parts)
    assert len(answers) == 1, answers
    status, headers, body = answers[0]
    error = json.loads(body)
    assert error["code"] == status
    assert error["object"] == "error"
    assert headers[b"connection"] == b"close"
    return status, error["message"]


async def counted(edge: Edge, kind: str) -> float:
    metrics = (await edge.running.client.get("/metrics")).text
    return float(metrics.partition(f'assay_errors_total{{type="{kind}"}} ')[2].partition("\n")[0])


# --- heads ---


async def test_a_silent_connection_is_closed(edge: Edge) -> None:
    assert await say(edge) == []


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"\r\n", GET[:-1]])
async def test_a_head_that_does_not_end(edge: Edge, start: bytes) -> None:
    before = await counted(edge, "request_timeout")
    assert await refused(edge, start) == (408, "The request's head was not complete within 1 s.")
    assert await counted(edge, "request_timeout") == before + 1


async def test_a_head_that_trickles(edge: Edge) -> None:
    """Each byte does not begin the time anew."""
    answers = await say(edge, *(bytes([byte]) for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 1000), pause=0.05)
    assert [status for status, _, _ in answers] in ([408], [])


@pytest.mark.parametrize("start", [b"G", b"\r\n"])
async def test_a_second_head_that_does_not_end(edge: Edge, start: bytes) -> None:
    answers = await say(edge, GET, start)
    assert [status for status, _, _ in answers] == [200, 408]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n"], 414),
        ([b"GET /" + b"a" * 9000], 414),
        ([b"GET /"] + [b"a" * 3000] * 4, 414),
        ([b"GET / HTTP/1.1\r\nX: " + b"a" * 13_000], 431),
        ([b"GET / HTTP/1.1\r\nX: " + b"a" * 13_000 + b"\r\n\r\n"], 431),
        ([b"GET / HTTP/1.1\r\nX: "] + [b"a" * 5000] * 3, 431),
        ([b"GET / HTTP/1.1\r\n"] + [b"X: " + b"a" * 3000 + b"\r\n"] * 5, 431),
        ([b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 3000], 431),
        ([b"GET / HTTP/1.1\r\n" + b"a" * 13_000], 431),
        ([b"\r\n" * 7000], 431),
        ([GET[:-2], *[b"X: " + b"a" * 3000 + b"\r\n"] * 5], 431),
        ([CHUNKED + b"2\r\n{}\r\n0\r\n"] + [b"X: " + b"a" * 3000 + b"\r\n"] * 5, 431),
        ([CHUNKED + b"2\r\n{}\r\n0\r\nX: "] + [b"a" * 5000] * 3, 431),
        ([CHUNKED + b"2;x="] + [b"a" * 5000] * 3, 431),
    ],
)
async def test_a_head_without_end(edge: Edge, parts: list[bytes], status: int) -> None:
    """Trailers and chunk extensions too, which come after the head."""
    limits = {414: "8192 bytes", 431: "12000 bytes"}
    found, message = await refused(edge, *parts)
    assert found == status
    assert limits[status] in message


async def test_what_is_just_within_the_limits(edge: Edge) -> None:
    answers = await say(edge, b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", LAST)
    assert [status for status, _, _ in answers] == [404, 200]
    long = LAST[:-2] + b"X: " + b"a" * 11_900 + b"\r\n\r\n"
    assert [status for status, _, _ in await say(edge, long)] == [200]
    tiny_chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(3000)) + b"0\r\n\r\n"
    parts = [tiny_chunks[i : i + 500] for i in range(0, len(tiny_chunks), 500)]
    assert [status for status, _, _ in await say(edge, CHUNKED, *parts, LAST)] == [200, 200]


MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\x00",
    "method": b"FETCH / HTTP/1.1\r\n\r\n",
    "version": b"GET / HTTP/3.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "NUL in the URL": b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHo\x00st: a\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n",
    "line feeds only": b"GET / HTTP/1.1\nHost: a\n\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "raw UTF-8 in the URL": "GET /é HTTP/1.1\r\n\r\n".encode(),
    "URL without a path": b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "lengths twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "lengths that differ": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "endless length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "bad chunk": CHUNKED + b"zz\r\n",
    "negative chunk": CHUNKED + b"-1\r\n",
    "endless chunk size": CHUNKED + b"f" * 17 + b"\r\n",
    "chunk longer than it says": CHUNKED + b"2\r\n{}{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
async def test_malformed(edge: Edge, request_bytes: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """In one piece, and byte by byte."""
    caplog.set_level(logging.INFO)
    assert (await refused(edge, request_bytes))[0] == 400
    parts = [bytes([byte]) for byte in request_bytes]
    answers = await say(edge, *parts, pause=0)
    assert [status for status, _, _ in answers] == [400]
    assert all(record.name == "assay.access" for record in caplog.records)


async def test_requests_before_a_malformed_one_are_answered(edge: Edge) -> None:
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    answers = await say(edge, whole + GET + b"\x00\x00" + GET)
    assert [status for status, _, _ in answers] == [200, 200]
    assert "data" in json.loads(answers[0][2])
    assert answers[1][1][b"connection"] == b"close"


async def test_a_pipeline_without_end(edge: Edge) -> None:
    answers = await say(edge, GET * (MAX_PIPELINED + 100))
    assert [status for status, _, _ in answers] == [200] * (MAX_PIPELINED + 1)


# --- another protocol ---

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("cut", [0, 20, 200, 10_000])
async def test_an_offer_of_http_2_is_declined_and_the_body_read(edge: Edge, cut: int, times: int) -> None:
    """Java's HttpClient offers it with each request."""
    request = POST + OFFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    chunked = POST + OFFER + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    everything = (request + chunked) * times + LAST
    answers = await say(edge, everything[:cut], everything[cut:])
    assert [status for status, _, _ in answers] == [200] * (2 * times + 1)
    assert all(b'"data"' in body for _, _, body in answers[:-1])


async def test_a_websocket_is_declined(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    offer = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    answers = await say(edge, GET[:-2] + offer, LAST)
    assert [status for status, _, _ in answers] == [200, 200]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- bodies ---


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/tokenize", "/v2/models/tiny/infer"])
@pytest.mark.parametrize("framing", [b"Content-Length: 50\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_a_body_that_does_not_end(edge: Edge, path: str, framing: bytes) -> None:
    head = POST.replace(b"/v1/classify", path.encode())
    answers = await say(edge, head + framing)
    (status, headers, body) = answers[0]
    assert (status, headers[b"connection"], len(answers)) == (408, b"close", 1)
    assert b"not complete within 1 s; 1 bytes" in body
    dialect = next((dialect for dialect in DIALECTS if path in dialect.paths), None)
    if dialect is not None:
        assert isinstance(json.loads(body), dict)
        assert set(json.loads(body)) == set(dialect.error.__struct_fields__)


async def test_a_body_that_trickles(edge: Edge) -> None:
    answers = await say(edge, POST + b"Content-Length: 5000\r\n\r\n", *[b" "] * 1000, pause=0.05)
    assert [status for status, _, _ in answers] in ([408], [])


async def test_a_body_without_end(edge: Edge) -> None:
    """The client hears it though it still sends, and the server does not listen for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            writer.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            await writer.drain()
            sent += 0x4000

    writer.write(CHUNKED)
    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(BOUND):
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        with contextlib.suppress(ConnectionError):
            await reader.read()
        with pytest.raises(ConnectionError):
            await flooding
    assert sent > LIMITS["max_body_bytes"]
    writer.close()
    await edge.closed()


async def test_who_still_sends_can_read_the_answer(edge: Edge) -> None:
    """To close at once, with bytes unread, would reset the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(POST + b"Content-Length: 9000000\r\n\r\n")
    async with asyncio.timeout(BOUND):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(10):
            writer.write(b" " * 100_000)
            await writer.drain()
        assert b"larger than 100000 bytes" in await reader.read()
    writer.close()
    await edge.closed()


async def test_a_length_beyond_the_limit_is_refused_unread(edge: Edge) -> None:
    answers = await say(edge, POST + b"Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n")
    assert [status for status, _, _ in answers] == [413]


@pytest.mark.parametrize("path", [b"/nope", b"/health", b"/v1/models"])
async def test_a_body_that_nobody_asked_for(edge: Edge, path: bytes) -> None:
    """Answered at once; then it may end, and the connection goes on, or not."""
    head = POST.replace(b"/v1/classify", path) + b"Transfer-Encoding: chunked\r\n\r\n"
    first = (await say(edge, head, b"1\r\na\r\n", b"0\r\n\r\n" + LAST))[0][0]
    assert first in (404, 405)
    assert [status for status, _, _ in await say(edge, head, b"1\r\na\r\n", b"0\r\n\r\n" + LAST)] == [first, 200]
    assert [status for status, _, _ in await say(edge, head, *[b"1\r\na\r\n"] * 1000, pause=0.05)] in ([first], [])


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "GZIP"])
async def test_compressed_bodies(edge: Edge, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    response = await edge.running.client.post("/v1/classify", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    assert encoding.lower() in response.json()["message"]
    plain = headers | {"content-encoding": "identity"}
    assert (await edge.running.client.post("/v1/classify", content=BODY, headers=plain)).status_code == 200


# --- connections ---


async def test_more_connections_than_allowed(edge: Edge) -> None:
    limit = LIMITS["max_connections"]
    assert isinstance(limit, int)
    await edge.closed()
    open_ones = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(limit)]
    status, message = await refused(edge, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, str(limit) in message) == (503, True)
    (_, headers, _) = (await say(edge, b""))[0]
    assert headers[b"retry-after"] == b"1"
    for reader, writer in open_ones:  # those that were there are served
        writer.write(LAST)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    await edge.closed()
    assert [status for status, _, _ in await say(edge, LAST)] == [200]


async def test_beyond_the_spare_connections_nobody_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.server.protocol.SPARE_CONNECTIONS", 0)
    async with serving_edge(tiny, max_connections=1) as small:
        _, writer = await asyncio.open_connection("127.0.0.1", small.port)
        await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            assert await say(small, GET) == []
        writer.close()


async def unread(edge: Edge, request: bytes) -> socket.socket:
    """A client that asks and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", edge.port))
    await loop.sock_sendall(client, request)
    return client


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"])
async def test_a_client_that_does_not_read(edge: Edge, last: bytes) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"
    await edge.closed()
    with await unread(edge, (request + b"\r\n") * 60 + request + last + b"\r\n"):
        await asyncio.sleep(0.1)
        assert len(edge.state.connections) == 1
        await edge.closed()


async def test_a_client_that_reads_slowly_gets_all(edge: Edge) -> None:
    """As long as it reads MIN_READ_BYTES in a write_timeout."""
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"
    whole = len((await edge.running.client.get("/openapi.json")).content)
    loop, got = asyncio.get_running_loop(), 0
    with await unread(edge, (request + b"\r\n") * 9 + request + b"Connection: close\r\n\r\n") as client:
        async with asyncio.timeout(60):
            while chunk := await loop.sock_recv(client, 150_000):
                got += len(chunk)
                await asyncio.sleep(0.02)
    assert got > 10 * whole


# --- the end ---


async def test_shutdown_waits_for_answers_and_for_nothing_else(tiny: Path) -> None:
    async with serving_edge(tiny, header_timeout=60, body_timeout=60) as server:
        release = asyncio.Event()
        engine = server.running.service.models[0].engine
        assert engine is not None
        classify = engine.classify

        async def later(*arguments: Any, **named: Any) -> Any:
            await release.wait()
            return await classify(*arguments, **named)

        engine.classify = later  # type: ignore[method-assign]
        whole = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        starts = (b"", b"GET / HT", POST + b"Content-Length: 9\r\n\r\n{", CHUNKED, whole)
        talks = [asyncio.create_task(say(server, start)) for start in starts]
        await asyncio.sleep(0.3)
        for connection in list(server.state.connections):
            connection.shutdown()
        ended = [await talk for talk in talks[:-1]]
        assert not talks[-1].done()
        release.set()
        assert [[status for status, _, _ in answers] for answers in [*ended, await talks[-1]]] == [
            [],
            [],
            [503],
            [503],
            [200],
        ]


# --- hosts ---


@pytest.mark.parametrize(
    ("host", "config", "status"),
    [
        ("localhost", {}, 200),
        ("LocalHost:8000", {}, 200),
        ("localhost.", {}, 200),
        ("app.localhost:80", {}, 200),
        ("127.0.0.1", {}, 200),
        ("127.0.0.1:8000", {}, 200),
        ("10.1.2.3", {}, 200),
        ("[::1]", {}, 200),
        ("[::1]:8000", {}, 200),
        (None, {}, 200),
        ("", {}, 200),
        ("page.example", {}, 421),
        ("page.example:8000", {}, 421),
        ("localhost.page.example", {}, 421),
        ("notlocalhost", {}, 421),
        ("127.0.0.1.page.example", {}, 421),
        ("[page.example]", {}, 421),
        ("user@localhost", {}, 421),
        ("page.example", {"host": "localhost"}, 421),
        ("page.example", {"host": "::1"}, 421),
        ("page.example", {"host": "0.0.0.0"}, 200),
        ("page.example", {"uds": "/run/assay.sock"}, 200),
        ("page.example", {"allowed_hosts": ("page.example",)}, 200),
        ("Page.Example.:80", {"allowed_hosts": ("other", "page.example")}, 200),
        ("page.example", {"allowed_hosts": ("*",)}, 200),
        ("sub.page.example", {"allowed_hosts": ("page.example",)}, 421),
        ("page.example", {"allowed_hosts": ("other",), "host": "0.0.0.0"}, 421),
        ("10.1.2.3:80", {"allowed_hosts": ("other",), "host": "0.0.0.0"}, 200),
        ("page.example", {"allowed_hosts": ("other",), "uds": "/run/assay.sock"}, 421),
    ],
)
async def test_hosts(tiny: Path, host: str | None, config: dict[str, Any], status: int) -> None:
    async with in_process(tiny, load=lambda *_: None, wait=False, **config) as running:
        for path in ("/version", "/v1/models"):
            request = running.client.build_request("GET", path)
            del request.headers["host"]
            if host is not None:
                request.headers["host"] = host
            response = await running.client.send(request)
            assert response.status_code == status, response.text
            if status == 421:
                assert "--allowed-host" in response.json()["message"]


async def test_two_hosts_are_both_looked_at(edge: Edge) -> None:
    two = LAST.replace(b"Host: localhost\r\n", b"Host: localhost\r\nHost: page.example\r\n")
    assert [status for status, _, _ in await say(edge, two)] == [421]


# --- origins ---

ORIGIN = {"origin": "https://app.example"}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_pages_of_an_origin_that_is_named_may_ask(tiny: Path) -> None:
    async with in_process(tiny, api_keys=("key",), cors_origins=("https://app.example",)) as running:
        preflight = await running.client.options("/v1/classify", headers=ORIGIN | PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN["origin"]
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        refusal = await running.client.post("/v1/classify", content=BODY, headers=ORIGIN)
        assert refusal.status_code == 401
        assert refusal.headers["access-control-allow-origin"] == ORIGIN["origin"]  # so that the page can read it
        headers = ORIGIN | {"content-type": "application/json", "x-api-key": "key"}
        answer = await running.client.post("/v1/classify", content=BODY, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN["origin"])
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("origin", ["https://page.example", "http://app.example", "https://app.example.evil", "null"])
async def test_pages_of_other_origins_may_not(tiny: Path, origin: str) -> None:
    async with in_process(tiny, cors_origins=("https://app.example",)) as running:
        preflight = await running.client.options("/v1/classify", headers=PREFLIGHT | {"origin": origin})
        assert preflight.status_code == 400
        assert "access-control-allow-origin" not in preflight.headers
        answer = await running.client.get("/version", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


async def test_by_default_no_page_may(edge: Edge) -> None:
    preflight = await edge.running.client.options("/v1/classify", headers=ORIGIN | PREFLIGHT)
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


# --- what errors show ---

ABSOLUTE = re.compile(r"(?<![\w.:/*])/[\w.-]+(?:/[\w.-]+)*")
INSIDES = re.compile(
    r"Traceback|File \"|\.pyx?\b|, line \d+, in |\b(?:assay|starlette|uvicorn|httptools|torch)\.\w|0x[0-9a-f]{6}"
)
OUR_PATHS = {"/v1/classify", "/v1/models", "/nope", "/json"}
SECRET = 'boom at File "/srv/secret.py", line 3, in f: torch.nn'


async def provoke(running: InProcess, path: str = "/v1/classify", **request: Any) -> httpx.Response:
    given = {"content": BODY, "headers": {"content-type": "application/json"}} | request
    return await running.client.request(given.pop("method", "POST"), path, **given)


def as_json(value: Any) -> dict[str, Any]:
    return {"content": json.dumps(value).encode()}


Provoke = Callable[[InProcess], Awaitable[httpx.Response]]
PROVOKED: dict[str, tuple[int, Provoke]] = {
    "not JSON": (400, lambda s: provoke(s, content=b"{")),
    "nested": (400, lambda s: provoke(s, content=b"[" * 90_000)),
    "endless number": (400, lambda s: provoke(s, content=b'{"input": [' + b"9" * 90_000 + b"]}")),
    "wrong type": (400, lambda s: provoke(s, **as_json({"input": {"a": 1}}))),
    "not UTF-8": (400, lambda s: provoke(s, content=b'{"input": "\xff"}')),
    "too long": (400, lambda s: provoke(s, **as_json({"input": "great " * 200}))),
    "no template": (400, lambda s: provoke(s, **as_json({"messages": [{"role": "user", "content": "a"}]}))),
    "bad id": (400, lambda s: provoke(s, **as_json({"input": [10**9]}))),
    "no path": (404, lambda s: provoke(s, "/nope")),
    "no model": (404, lambda s: provoke(s, **as_json({"input": "a", "model": "other"}))),
    "method": (405, lambda s: provoke(s, method="PUT")),
    "inputs": (413, lambda s: provoke(s, **as_json({"input": ["a"] * 20_000}))),
    "bytes": (413, lambda s: provoke(s, content=b" " * 100_001)),
    "type": (415, lambda s: provoke(s, headers={"content-type": "text/plain"})),
    "host": (421, lambda s: provoke(s, headers={"host": "page.example"})),
}


def check_shown(text: str) -> None:
    assert not INSIDES.search(text), text
    assert {path.rstrip(".") for path in ABSOLUTE.findall(text)} <= OUR_PATHS, text


@pytest.mark.parametrize(("status", "request_of"), PROVOKED.values(), ids=PROVOKED)
async def test_errors_show_nothing_of_our_insides(edge: Edge, status: int, request_of: Provoke) -> None:
    response = await request_of(edge.running)
    assert response.status_code == status, response.text
    check_shown(response.text)


@pytest.mark.parametrize("path", [path for dialect in DIALECTS for path in dialect.paths])
async def test_nor_do_bugs(edge: Edge, path: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A failure whose message has a path, a module and a caller's text: neither answer nor log has it."""

    async def boom(*_: Any, **__: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(edge.running.service.models[0].engine, "classify", boom)
    dialect = next(dialect for dialect in DIALECTS if path in dialect.paths)
    url = re.sub(r"{(\w+):?\w*}", lambda name: {"model": "tiny", "version": "1"}[name[1]], path)
    response = await provoke(edge.running, url, **as_json(dialect.example | {"model": "tiny"}))
    assert response.status_code >= 400
    check_shown(response.text)
    assert "secret" not in response.text + caplog.text


async def test_nor_do_the_engines_refusals(tiny: Path) -> None:
    headers = {"content-type": "application/json"}
    async with in_process(tiny, engine={"max_queue_tokens": 20}, served_model_name="tiny") as running:
        at_once = await asyncio.gather(*(provoke(running) for _ in range(50)))
        full = next(response for response in at_once if response.status_code != 200)
        late = await provoke(running, headers=headers | {"x-request-timeout-ms": "never"})
        await running.service.drain()
        draining = await provoke(running)
    async with in_process(tiny, api_keys=("key",), load=lambda *_: None, wait=False) as running:
        running.service.models[0].engine = None
        stranger = await provoke(running)
        loading = await provoke(running, headers=headers | {"x-api-key": "key"})
    found = [full, late, draining, stranger, loading]
    assert [response.status_code for response in found] == [429, 400, 503, 401, 503]
    for response in found:
        check_shown(response.text)


async def test_what_the_scan_would_find() -> None:
    for leak in (SECRET, "/root/x", 'in "/work/a"', "assay.server.app", "at 0x7f0123456789", "a.py"):
        with pytest.raises(AssertionError):
            check_shown(leak)


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"allowed_hosts": ("https://a.example",)}, "allowed_hosts has 'https://a.example'"),
        ({"allowed_hosts": ("a.example:80",)}, "without a port"),
        ({"allowed_hosts": ("",)}, "allowed_hosts has ''"),
        ({"trusted_proxies": ("10.0.0.0/40",)}, "trusted_proxies has '10.0.0.0/40'"),
        ({"trusted_proxies": ("*", "proxy.example")}, "an address, a network"),
        ({"allowed_hosts": "a.example"}, "allowed_hosts must be a tuple"),
        ({"cors_origins": ("*",)}, r"cors_origins has '\*'"),
        ({"cors_origins": ("app.example",)}, "https://app.example.com"),
        ({"cors_origins": ("https://app.example/",)}, "no path"),
        ({"ssl_keyfile": "key.pem"}, "ssl_keyfile is set, and ssl_certfile is not"),
        ({"header_timeout": 0}, "at least 0.1"),
        ({"body_timeout": 0}, "at least 0.1"),
        ({"write_timeout": 0}, "at least 0.1"),
        ({"max_connections": 0}, "at least 1"),
        ({"max_header_bytes": 100}, "at least 256"),
    ],
)
async def test_settings_that_cannot_be(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ServerConfig(**settings)


async def test_settings_that_can_be() -> None:
    ServerConfig(
        allowed_hosts=("*",), cors_origins=("https://app.example", "http://[::1]:3000", "http://localhost:5173")
    )


# --- Unix sockets ---


async def test_a_unix_socket_is_for_this_user_alone_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "assay.sock"
    with listening(ServerConfig(uds=str(path))):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigError, match="another server does"), listening(ServerConfig(uds=str(path))):
            raise AssertionError
        assert path.exists()
    assert not path.exists()


async def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "assay.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(ServerConfig(uds=str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"), listening(ServerConfig(uds=str(path))):
        raise AssertionError
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 200, "missing/assay.sock"])
async def test_a_path_that_cannot_be(tmp_path: Path, name: str) -> None:
    config = ServerConfig(uds=str(tmp_path / name))
    with pytest.raises(ConfigError, match="Choose another --uds"), listening(config):
        raise AssertionError

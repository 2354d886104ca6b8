"""One connection, with limits: uvicorn's protocol, for clients that are slow, endless or hostile. Knows no route.

Whoever owes bytes has a time for them: a head `header_timeout`, the reader of an answer `write_timeout`; a body's time
is kept by whoever reads it. What is refused here is no request yet: it has the document's shape and no line in the
access log; metrics count it. Nothing that a client sent is logged.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from assay.config import ServerConfig
from assay.errors import (
    AssayError,
    HeadTooLargeError,
    OverloadedError,
    RequestError,
    SlowRequestError,
    UnavailableError,
    UriTooLongError,
)
from assay.metrics import Metrics
from assay.server.cycle import Cycle
from assay.server.outbox import Outbox, Turn
from assay.server.refusal import Refusal, reason_of, refusal
from assay.server.timer import Timer
from assay.server.unread import UnreadWatch

MAX_URL_BYTES = 8 * 1024
MAX_PIPELINED = 64  # requests on one connection that wait behind another
SPARE_CONNECTIONS = 256  # above max_connections: they are told; beyond them, clients are cut off without a word
LINGER_SECONDS = 2.0  # for what a client was still sending when it was answered: to close at once would lose the answer

_log = logging.getLogger("assay.server")


class EdgeProtocol(HttpToolsProtocol):
    """limits: timeouts and sizes. metrics: count what is refused, by type. turn: of the loop that this runs on."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: ServerConfig,
        metrics: Metrics,
        turn: Turn,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.cycle: Cycle = None  # type: ignore[assignment]  # the newest request's; None before the first, as uvicorn's
        self.pipeline: deque[Cycle] = deque()  # type: ignore[assignment]  # those that wait for it, the last first
        self._limits = limits
        self._metrics = metrics
        self._turn = turn
        self._begun = False  # a head has begun
        self._receiving = False  # a head is complete, its body is not
        self._head_bytes = 0  # of this request's URL, headers and trailers
        self._fed = 0  # bytes since the parser last had a head, or some of a body
        self._upgrade: bytes | None = None  # the head of a request that asks for another protocol, without the asking
        self._deaf = False  # what comes is thrown away
        self._left = False  # nothing more is answered
        self._running: Cycle | None = None  # the request that is being answered
        self._timer = Timer(self.loop)
        self._timed = ""  # what it is set for

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        transport = Outbox(transport, self._turn)
        super().connection_made(transport)
        self._unread = UnreadWatch(transport, self._limits.write_timeout, self.loop)
        limit = self._limits.max_connections
        if len(self.connections) > limit + SPARE_CONNECTIONS:
            transport.abort()
        elif len(self.connections) > limit:
            self._refuse(OverloadedError(f"The server has {limit} connections, as many as it takes; try again later."))
        else:
            self._time("head", self._limits.header_timeout, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._fed += len(data)
        try:
            self._feed(data)
            if self._fed > self._limits.max_header_bytes:
                raise self._too_large()
        except httptools.HttpParserError as error:
            self._refuse(reason_of(error))
        except Refusal as refusal:
            self._refuse(refusal.error)
        else:
            self._watch()

    def _feed(self, data: bytes) -> None:
        """Some clients, Java's among them, offer HTTP/2 each time. There the parser stops and loses the body, so it
        reads the request once more, without the offer.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                head, self._upgrade = self._upgrade or b"", None
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(head)

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells the newest request of a pipeline, and not the one that runs."""
        self._timer.end()
        self._unread.stop()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.leave()

    def shutdown(self) -> None:
        """uvicorn waits for answers. The rest of a request is not waited for."""
        pending = self.cycle is not None and not self.cycle.response_complete
        if pending and self._receiving and not self.pipeline and not self._left:
            self._refuse(UnavailableError("The server is shutting down; try another."))
        else:
            super().shutdown()

    # --- what the parser finds ---

    def on_message_begin(self) -> None:
        self._begun, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_URL_BYTES:
            raise Refusal(UriTooLongError(f"The URL is longer than {MAX_URL_BYTES} bytes; shorten it."))
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers too, which come after the body."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.max_header_bytes:
            raise self._too_large()
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._upgrade = self._head_without_upgrade()
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Refusal(RequestError(f"More than {MAX_PIPELINED} requests wait on this connection."))
        scope = self._whole_scope()
        before, self.cycle = self.cycle, self._cycle(scope)
        self._begun, self._receiving, self._fed = False, True, 0
        if before is None or before.response_complete:
            self._start(self.cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft(self.cycle)

    def _whole_scope(self) -> Any:
        """ASGI's, which uvicorn began with what the connection knows. Raises for a URL that has no path."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope: Any = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = self.parser.get_http_version()
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        return scope

    def _cycle(self, scope: Any) -> Cycle:
        return Cycle(
            scope,
            self.transport,
            self.flow,
            self.server_state.default_headers,
            keep_alive=scope["http_version"] != "1.0" and self.parser.should_keep_alive(),
            waiting_for_100_continue=self.expect_100_continue,
            close=self._close_after_answer,
            on_response=self.on_response_complete,
        )

    def _start(self, cycle: Cycle) -> None:
        self._running = cycle
        task = cycle.exchange.task = self.loop.create_task(cycle.run(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_body(self, body: bytes) -> None:
        self._fed = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        if cycle.add_body(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._upgrade is None:
            self._receiving, self._fed = False, 0
            self.cycle.end_body()

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise Refusal(RequestError("This server is no proxy; CONNECT is not answered."))
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _too_large(self) -> Refusal:
        limit = self._limits.max_header_bytes
        return Refusal(HeadTooLargeError(f"The request's URL and headers are longer than {limit} bytes."))

    # --- who owes what ---

    def on_response_complete(self) -> None:
        """In place of uvicorn's, which starts and cancels a timer for each request."""
        self.server_state.total_requests += 1
        if self._left or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start(self.pipeline.pop())
        self._watch()

    def _watch(self) -> None:
        """Set the timer for what is owed to us now. While we owe an answer there is none."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._untime()
        elif self._receiving:  # it is answered, and still sends
            self._time("rest", LINGER_SECONDS, self._close)
        elif self._begun or self._fed:
            self._time("head", self._limits.header_timeout, self._head_is_late)
        else:
            self._time("next", self.timeout_keep_alive, self._close)

    def _time(self, what: str, seconds: float, then: Callable[[], None]) -> None:
        if self._timed != what:
            self._timer.set(seconds, then)
            self._timed = what

    def _untime(self) -> None:
        self._timer.unset()
        self._timed = ""

    def _head_is_late(self) -> None:
        """Who has begun to speak is told; who has not is a browser's spare connection, or worse."""
        if self._begun or self._fed:
            seconds = self._limits.header_timeout
            self._refuse(SlowRequestError(f"The request's head was not complete within {seconds:g} s."))
        else:
            self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # else the rest must be read too
            self._unread.stop()

    # --- endings ---

    def _close_after_answer(self) -> None:
        if self._receiving:
            self._leave()
        else:
            self._close()

    def _close(self) -> None:
        """Once what is written has been read."""
        self._deaf = True
        self._untime()
        if not self.transport.is_closing():
            self.transport.close()
            self._unread.start()

    def _leave(self) -> None:
        """Once what is written has been sent, and the client has closed too, or LINGER_SECONDS are over."""
        self._deaf = self._left = True
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS
            self.transport.close()
        self._time("end", LINGER_SECONDS, self.transport.abort)

    def _refuse(self, error: AssayError) -> None:
        """Answer with an error and end the connection. Whole requests that came before are answered first."""
        self._metrics.errors.labels(error.type).inc()
        _log.debug("A connection is refused: %s", error.type)
        self._deaf = True
        self._untime()
        cycle = self.cycle
        answered = cycle is None or cycle.response_complete
        if not answered and not self._receiving:
            cycle.keep_alive = False
        elif not answered and (cycle.response_started or self.pipeline):
            self.transport.abort()
        else:
            if not answered:  # whoever reads the body hears that the client is gone, and answers nobody
                cycle.disconnected = True
                cycle.message_event.set()
            if not (answered and self._receiving):
                self.transport.write(refusal(error, self.server_state.default_headers))
            self._leave()

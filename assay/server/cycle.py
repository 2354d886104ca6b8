"""One request and its answer, as the application sees them: ASGI's `receive` and `send`. Knows no parser and no route.

In place of uvicorn's own, which searches the name and the value of each header, and writes an answer's head and body
apart: each write is a system call.
"""

import asyncio
import logging
from collections.abc import Callable
from traceback import format_tb

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from assay.server.exchange import Exchange

_log = logging.getLogger("assay.server")

_LEAVE_TO_SEND = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS = (204, 304)
_FAILED = b"Internal Server Error"


class News:
    """Wakes who waits for what comes next, if anybody does. With an asyncio.Event for each request, the HTTP front
    answers 0.92 times as much.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def wait(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        await self._waiting


class Cycle:
    """exchange: left in the scope too.

    scope: ASGI's; names of headers are in lower case there, and in answers. keep_alive: the connection outlives the
        answer. waiting_for_100_continue: the client has asked for leave to send its body.
    close: ends the connection behind what is written. on_response: called when the answer is out.
    """

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        waiting_for_100_continue: bool,
        close: Callable[[], None],
        on_response: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.exchange = scope["exchange"] = Exchange()
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = waiting_for_100_continue
        self.close = close
        self.on_response = on_response
        self.message_event = News()  # a piece of the body, or an end; uvicorn's protocol knows it by this name
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._body = bytearray()  # what has come and is not received
        self._received = False  # the end of the body too: what comes next is the client's end
        self._head = b""  # waits for what follows it
        self._left: int | None = None  # of the answer's body, in bytes; None: it comes in chunks

    async def run(self, app: ASGIApp) -> None:
        """An edge: the application answers its own failures, so that only those in an answer come here, and the end of
        a server that does not wait any longer.
        """
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:
            frames = "".join(format_tb(error.__traceback__)).rstrip()
            _log.error("A request was not answered: %s.\n%s", type(error).__name__, frames)
        if not (self.response_complete or self.disconnected):
            await self._fail()
        self.close = self.on_response = _nothing  # the connection's, which has this

    async def _fail(self) -> None:
        if self.response_started:
            self.close()
            return
        headers = [(b"connection", b"close"), (b"content-length", b"%d" % len(_FAILED))]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": _FAILED})

    def add_body(self, body: bytes) -> int:
        """A piece has come. How many bytes wait to be received."""
        self._body += body
        self.message_event.set()
        return len(self._body)

    def end_body(self) -> None:
        """It is here, to its end."""
        self.exchange.whole = True
        self.message_event.set()

    def leave(self) -> None:
        """The client has gone."""
        self.disconnected = True
        self.message_event.set()
        self.exchange.leave()

    async def receive(self) -> Message:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(_LEAVE_TO_SEND)
            self.waiting_for_100_continue = False
        whole = self.exchange.whole
        while not (self._body or self.disconnected or self.response_complete) and (not whole or self._received):
            self.flow.resume_reading()
            await self.message_event.wait()
            whole = self.exchange.whole
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._received = whole
        return {"type": "http.request", "body": body, "more_body": not whole}

    async def send(self, message: Message) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._begin(message["status"], message["headers"])
            return
        if self.response_complete:
            raise RuntimeError("An answer goes on behind its end.")
        more = message.get("more_body", False)
        written = self._head + self._framed(message.get("body", b""), more)
        self._head = b""
        if written:
            self.transport.write(written)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.close()
            self.on_response()

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started, self.waiting_for_100_continue = True, False
        headers = [*self.default_headers, *headers]
        closes = False
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                closes = b"close" in value
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        if self._left is None:
            if self.scope["method"] == "HEAD" or status in _BODILESS:
                self._left = 0
            else:
                headers.append((b"transfer-encoding", b"chunked"))
        self._head = head_of(status, headers)

    def _framed(self, body: bytes, more: bool) -> bytes:
        if self.scope["method"] == "HEAD":
            return b""
        if self._left is None:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        self._left -= len(body)
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("An answer's body has another length than its head says.")
        return body


def head_of(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """An answer's, as it is sent. Raises RuntimeError for a header that would be two."""
    head = b"".join([STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers], b"\r\n"])
    if not head.count(b"\n") == head.count(b"\r") == len(headers) + 2:
        raise RuntimeError("A header of an answer has a line break.")
    return head


def _nothing() -> None:
    pass

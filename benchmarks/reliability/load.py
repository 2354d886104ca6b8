"""A load generator: HTTP/1.1 on raw sockets, keep-alive, closed loop or open loop. Knows no body and no expectation.

Every request that is sent ends as exactly one outcome: a status, GIVEN_UP (we hung up on purpose), LOST (the connection
ended without an answer), TIMEOUT or NO_CONNECTION. The generator is bounded in count, in time and in connections.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

GIVEN_UP, LOST, TIMEOUT, NO_CONNECTION = "given up by the client", "lost", "timed out", "no connection"
_IDLE_SECONDS = 1.0  # a server may close a connection that has been idle for long, at the moment when it is used again
Hangup = Literal["", "mid-body", "mid-answer", "reset"]


@dataclass(frozen=True, slots=True)
class Request:
    """hangup: when the client closes the connection on purpose; `after` is in seconds, for the last two.

    chunked: without a Content-Length, so that the server must count for itself.
    """

    body: bytes
    path: str = "/v1/classify"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    hangup: Hangup = ""
    after: float = 0.0
    chunked: bool = False

    def head(self) -> bytes:
        length = "transfer-encoding: chunked" if self.chunked else f"content-length: {len(self.body)}"
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "host: localhost",
            *(f"{n}: {v}" for n, v in self.headers),
            length,
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def content(self) -> bytes:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body) if self.chunked else self.body


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. end: a status, or why there is none.

    seconds: from its first byte to the answer's last. started: on the monotonic clock.
    """

    end: int | str
    seconds: float = 0.0
    started: float = 0.0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Client:
    """Connections to one server, reused while the server keeps them.

    patience: seconds for one request. opened: connections so far.
    """

    def __init__(self, url: str, patience: float = 60.0) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._patience = patience
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.opened = 0

    async def send(self, request: Request) -> Outcome:
        """One request to its end, which comes in bounded time."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                end, headers, body = await self._exchange(request)
        except TimeoutError:
            end, headers, body = TIMEOUT, {}, b""
        return Outcome(end, time.monotonic() - started, started, body, headers)

    async def _exchange(self, request: Request) -> tuple[int | str, dict[str, str], bytes]:
        """Nothing is ever sent twice, so that a request that the server lost is seen to be lost."""
        try:
            reader, writer = await self._connection(fresh=bool(request.hangup))
        except OSError:
            return NO_CONNECTION, {}, b""
        keep = False
        try:
            if request.hangup:
                return await self._hang_up(request, writer)
            status, headers, body = await _ask(request, reader, writer)
            keep = headers.get("connection", "").lower() != "close"
            return status, headers, body
        except (ConnectionError, asyncio.IncompleteReadError):
            return LOST, {}, b""
        finally:
            if keep:
                self._free.append((time.monotonic(), reader, writer))
            else:
                writer.close()

    async def _hang_up(self, request: Request, writer: asyncio.StreamWriter) -> tuple[int | str, dict[str, str], bytes]:
        """Send it, or half of it, and go."""
        content = request.content()
        writer.write(request.head() + (content[: len(content) // 2] if request.hangup == "mid-body" else content))
        await asyncio.sleep(request.after)
        if request.hangup == "reset" and not writer.is_closing():
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return GIVEN_UP, {}, b""

    async def _connection(self, fresh: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free and not fresh:
            since, reader, writer = self._free.pop()
            if time.monotonic() - since < _IDLE_SECONDS and not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        self.opened += 1
        return await asyncio.open_connection(self._host, self._port, limit=2**24)

    async def close(self) -> None:
        for _, _, writer in self._free:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self._free.clear()


async def _ask(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, dict[str, str], bytes]:
    """Send and read. A server may refuse a body before it has read it, and close: the answer is read all the same."""
    writer.write(request.head() + request.content())
    head = await reader.readuntil(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(status_line.split(" ", 2)[1])
    if request.method == "HEAD" or status in (204, 304):
        return status, headers, b""
    return status, headers, await reader.readexactly(int(headers["content-length"]))


async def closed_loop(
    url: str, requests: Iterable[Request], callers: int, seconds: float = 600.0, patience: float = 60.0
) -> list[Outcome]:
    """So many callers, each with one request at a time, until the requests or the seconds are used up.

    Outcomes come in the order of the requests.
    """
    client = Client(url, patience)
    numbered = iter(enumerate(requests))
    outcomes: dict[int, Outcome] = {}
    end = time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < end and (following := next(numbered, None)) is not None:
            index, request = following
            outcomes[index] = await client.send(request)

    await asyncio.gather(*(caller() for _ in range(callers)))
    await client.close()
    return [outcomes[index] for index in sorted(outcomes)]


async def open_loop(
    url: str, request: Callable[[int], Request], rate: float, seconds: float, most: int = 2000, patience: float = 120.0
) -> tuple[list[Outcome], int]:
    """`rate` requests a second for so many seconds, whether answers come or not; then wait for all answers.

    Returns the outcomes, and how many were not sent since `most` were under way: a generator that lags says so.
    """
    client = Client(url, patience)
    tasks: set[asyncio.Task[None]] = set()
    outcomes: list[Outcome] = []
    unsent = 0

    async def one(index: int) -> None:
        outcomes.append(await client.send(request(index)))

    started = time.monotonic()
    for index in range(int(rate * seconds)):
        due = started + index / rate
        if (early := due - time.monotonic()) > 0:
            await asyncio.sleep(early)
        elif index % 50 == 0:
            await asyncio.sleep(0)
        if len(tasks) >= most:
            unsent += 1
            continue
        task = asyncio.create_task(one(index))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await client.close()
    return outcomes, unsent


async def every(seconds: float, work: Callable[[], Awaitable[None] | None], stop: asyncio.Event) -> None:
    """Do `work` again and again until `stop`."""
    while not stop.is_set():
        result = work()
        if result is not None:
            await result
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            continue


def ends(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many ended in which way, by the names used in reports."""
    return {str(end): count for end, count in sorted(Counter(outcome.end for outcome in outcomes).items(), key=str)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

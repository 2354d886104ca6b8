"""A crowd of slow clients: each sends one byte a second of a request that never ends. Knows only a port."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle, islice

_POST = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
# What each kind sends at once, and what it repeats.
KINDS = {
    "silent": (b"", b""),
    "head": (b"GET /health HTTP/1.1\r\nX-Slow: ", b"a"),
    "blank lines": (b"", b"\n"),
    "body": (_POST + b"Content-Length: 5000\r\n\r\n", b" "),
    "chunks": (_POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "unwanted body": (b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


class Crowd:
    """open: how many are connected. endings: how many heard which first line, or none, before they were cut off."""

    def __init__(self) -> None:
        self.open = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.endings: Counter[str] = Counter()

    async def _stay(self, port: int, kind: str, again: bool) -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            self.open += 1
            sending = asyncio.create_task(_trickle(writer, *KINDS[kind]))
            answer = b""
            try:
                with contextlib.suppress(ConnectionError):
                    while piece := await reader.read(4096):
                        answer += piece
            finally:
                self.open -= 1
                sending.cancel()
                writer.close()
            first_line = answer.partition(b"\r\n")[0].decode()
            self.endings[f"{kind}: {first_line or 'closed'}"] += 1
            if not again:
                return


async def _trickle(writer: asyncio.StreamWriter, start: bytes, more: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(start)
        while more:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(1)


@asynccontextmanager
async def crowd(port: int, count: int, again: bool = False) -> AsyncIterator[Crowd]:
    """Connected for the length of a `with` block, or until the server cuts them off. again: then they come back."""
    slow = Crowd()
    slow.tasks = [asyncio.create_task(slow._stay(port, kind, again)) for kind in islice(cycle(KINDS), count)]
    try:
        async with asyncio.timeout(30):
            while slow.open < count and not any(task.done() for task in slow.tasks):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield slow
    finally:
        for task in slow.tasks:
            task.cancel()
        await asyncio.gather(*slow.tasks, return_exceptions=True)

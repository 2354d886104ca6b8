"""A lean load generator in a process of its own: callers in a closed loop on kept-alive connections. Knows no dialect.

asyncio protocols on uvloop, requests made beforehand, answers read no further than their status and length. Its own CPU
time is reported with every answer, since on a small machine it is taken from the server.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import uvloop
from lines import answer, timed

_PATIENCE = 120.0  # seconds for what is under way when the time is up


class Caller(asyncio.Protocol):
    """One connection with one request at a time, from the list that all callers share."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.index = next(self.run.indices, None)
        if self.index is None or time.perf_counter() > self.run.end:
            self.finish()
            return
        self.started = time.perf_counter()
        self.transport.write(self.run.requests[self.index])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _content_length(head)
        if length is None:
            self.done.set_exception(ValueError(f"an answer without a Content-Length: {head[:200]!r}"))
            self.transport.close()
            return
        if len(rest) < length:
            return
        now = time.perf_counter()
        self.buffer = b""
        self.run.answered.append((self.index, now, now - self.started))
        self.run.statuses[head[9:12].decode()] += 1
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.run.statuses["lost"] += 1
            self.done.set_result(None)

    def finish(self) -> None:
        self.done.set_result(None)
        self.transport.close()


class Run:
    """What the callers share. answered: (request, when, seconds)."""

    def __init__(self, requests: list[bytes], seconds: float) -> None:
        self.requests = requests
        self.indices: Iterator[int] = iter(range(len(requests)))
        self.started = time.perf_counter()
        self.end = self.started + seconds
        self.answered: list[tuple[int, float, float]] = []
        self.statuses: Counter[str] = Counter()


def load(port: int, path: str, bodies: list[Any], order: list[int], callers: int, seconds: float) -> dict[str, Any]:
    """Send the bodies in this order until they, or the seconds, are used up; wait for what is under way.

    Returns which requests were answered, the seconds until the last answer, latencies in seconds and statuses.
    """
    made = [_request(path, json.dumps(body).encode()) for body in bodies]
    run = Run([made[i] for i in order], seconds)
    used = timed(lambda: uvloop.run(_all(run, port, callers)))
    last = max((when for _, when, _ in run.answered), default=run.started)
    return {
        "answered": [order[index] for index, _, _ in run.answered],
        "seconds": last - run.started,
        "latencies": [round(latency, 6) for _, _, latency in run.answered],
        "statuses": dict(run.statuses),
        "cpu_seconds": used["cpu_seconds"],
    }


async def _all(run: Run, port: int, callers: int) -> None:
    loop = asyncio.get_running_loop()
    run.end += time.perf_counter() - run.started
    run.started = time.perf_counter()
    # Connections are opened one after another, and ask at once: with many callers the first ones are under way by then.
    made = [await loop.create_connection(lambda: Caller(run), "127.0.0.1", port) for _ in range(callers)]
    async with asyncio.timeout(run.end - run.started + _PATIENCE):
        await asyncio.gather(*(caller.done for _, caller in made))


def _request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None


if __name__ == "__main__":
    answer({"load": load})

"""One timer of a connection, which is set and unset with every request. Knows no connection."""

import asyncio
import math
from collections.abc import Callable


class Timer:
    """The loop is told of it once in many times: its timer stays when this one is unset or put off, and where it rings
    too early, it is set again for what is left. To start and cancel one for each request takes longer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = math.inf
        self._then: Callable[[], None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._rings = math.inf  # when the loop's does

    def set(self, seconds: float, then: Callable[[], None]) -> None:
        """Call this in so many seconds, and not what it was set for before."""
        self._due, self._then = self._loop.time() + seconds, then
        if self._due < self._rings:
            self._start()

    def unset(self) -> None:
        self._then = None

    def end(self) -> None:
        """The connection is gone."""
        self._then = None
        if self._handle is not None:
            self._handle.cancel()

    def _start(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._rings = self._due
        self._handle = self._loop.call_later(self._due - self._loop.time(), self._ring)

    def _ring(self) -> None:
        self._handle, self._rings = None, math.inf
        if self._then is None:
            return
        if self._due > self._loop.time():
            self._start()
            return
        then, self._then = self._then, None
        then()

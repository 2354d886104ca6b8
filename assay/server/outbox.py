"""What a connection sends, written at the end of the event loop's turn, together with what others send. Knows no HTTP.

A write that finds its reader asleep has to wake it, on another core, and that takes longer than the rest of the write.
The answers of one batch come one after another in one turn, each some ten microseconds behind the one before: a gateway
or a client of many connections would read each, and fall asleep again. Written together, they wake it once, and what it
asks next comes together too.
"""

import asyncio
import logging
from traceback import format_tb
from typing import Any

_log = logging.getLogger("assay.server")

_LARGE = 64 * 1024  # bytes that are not kept for later


class Turn:
    """The event loop's present turn, and whose letters wait for its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Outbox] = []

    def add(self, outbox: "Outbox") -> None:
        if not self._waiting:
            self._loop.call_soon(self._end)
        self._waiting.append(outbox)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outbox in waiting:
            try:
                outbox.flush()
            except Exception as error:  # an edge: what is wrong with one connection keeps no answer from another
                _log.error(
                    "An answer was not written: %s.\n%s", type(error).__name__, "".join(format_tb(error.__traceback__))
                )


class Outbox(asyncio.Transport):
    """A transport that keeps one write until the turn's end, and never behind a later one, or the connection's end."""

    def __init__(self, transport: asyncio.Transport, turn: Turn) -> None:
        super().__init__()
        self._transport = transport
        self._turn = turn
        self._kept: bytes | bytearray | memoryview = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._kept or len(data) > _LARGE:
            self.flush()
            self._transport.write(data)
        elif data:
            self._kept = data
            self._turn.add(self)

    def flush(self) -> None:
        kept, self._kept = self._kept, b""
        if kept and not self._transport.is_closing():
            self._transport.write(kept)

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._kept = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return len(self._kept) + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

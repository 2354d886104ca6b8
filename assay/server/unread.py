"""Cuts off a client that does not read what it asked for. Knows a transport and a time, and no HTTP."""

import asyncio
import contextlib
import fcntl
import struct
import termios

MIN_READ_BYTES = 64 * 1024  # of what is not read yet: so much within the time, or all of it


class UnreadWatch:
    """Of one connection. seconds: in which something must be read, each time."""

    def __init__(self, transport: asyncio.Transport, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._seconds = seconds
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0  # when last looked at

    def start(self) -> None:
        if self._timer is None:
            self._unread = self._size()
            self._timer = self._loop.call_later(self._seconds, self._check)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self._unread - self._size() < MIN_READ_BYTES:
            self._transport.abort()
        else:
            self.start()

    def _size(self) -> int:
        """Bytes in our buffer and in the kernel's, which takes megabytes, and from ours only large pieces at a time."""
        size: int = self._transport.get_write_buffer_size()
        with contextlib.suppress(OSError):  # where the system does not tell
            descriptor = self._transport.get_extra_info("socket").fileno()
            size += struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
        return size

"""Daemon threads that run calls for an event loop, and are given up when they do not come back. Knows no tokenizer.

A pattern in a stranger's tokenizer can take for ever on one text, and no thread can be killed. Such a call loses its
caller and its thread; the thread is replaced a few times, and then the owner hears that it is no use.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from assay.errors import AssayError, InternalError

Result = TypeVar("Result")

_log = logging.getLogger("assay.engine")
_JOIN_SECONDS = 5.0


class Threads:
    """patience: seconds after which a running call is given up. spares: threads that may be lost; with the next one,
    `on_lost` is called on the loop.
    """

    def __init__(
        self, count: int, name: str, patience: float, spares: int = 8, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self.patience = patience
        self.on_lost = on_lost
        self.lost = 0
        self._spares = spares
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._count = count
        self._closing: AssayError | None = None

    async def run(self, call: Callable[..., Result], *args: Any) -> Result:
        """The call's result or its error. Raises InternalError for a call that did not come back."""
        if self._closing is not None:
            raise self._closing
        while len(self._threads) < self._count:  # on first use, so that nothing starts before there is a loop
            self._start()
        job = _Job(self, call, args, asyncio.get_running_loop())
        self._jobs.put(job)
        result: Result = await job.future
        return result

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._closing is not None:
                job.settle_from_thread(None, self._closing)
                continue
            job.thread = threading.current_thread()
            if job.run():
                return  # it was given up meanwhile, and replaced

    def replace(self, thread: threading.Thread) -> None:
        """On the loop: this thread does not come back."""
        self._threads.remove(thread)
        self.lost += 1
        _log.error("A tokenizer thread is given up after %g s (%d so far).", self.patience, self.lost)
        if self.lost > self._spares:
            self.on_lost()
        elif self._closing is None:
            self._start()

    def close(self, error: AssayError) -> None:
        """Calls that wait get `error`; those that run end, unless they take too long. From any thread."""
        self._closing = error
        threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Job:
    """One call, its future, and the timer that gives it up."""

    def __init__(
        self, pool: Threads, call: Callable[..., Any], args: tuple[Any, ...], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self.thread: threading.Thread | None = None
        self._pool = pool
        self._call = call
        self._args = args
        self._loop = loop
        self._started = 0.0
        self._end = threading.Lock()  # guards the two below: the call ends, or it is given up, not both
        self._finished = False
        self._given_up = False
        self._timer = loop.call_later(pool.patience, self._check)

    def run(self) -> bool:
        """On the thread. Whether it was given up meanwhile."""
        if self.future.cancelled():
            self.settle_from_thread(None, None)
            return False
        self._started = time.monotonic()
        result: Any = None
        failure: Exception | None = None
        try:
            result = self._call(*self._args)
        except (StopIteration, StopAsyncIteration) as error:  # no future takes these
            failure = InternalError(f"Tokenizing failed: {type(error).__name__}.")
        except Exception as error:  # an edge: the caller is told
            failure = error
        except BaseException as error:  # a panic of the tokenizer's library
            _log.error("The tokenizer's library failed: %s.", type(error).__name__)
            failure = InternalError("The tokenizer's library failed on this input.")
        self.settle_from_thread(result, failure)
        with self._end:
            self._finished = True
            return self._given_up

    def settle_from_thread(self, result: Any, error: Exception | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: Exception | None) -> None:
        self._timer.cancel()
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def _check(self) -> None:
        """On the loop: it has been a while. Time in the queue does not count."""
        ran = time.monotonic() - self._started if self._started else 0.0
        if ran < self._pool.patience:
            self._timer = self._loop.call_later(self._pool.patience - ran, self._check)
            return
        with self._end:
            if self._finished:
                return
            self._given_up = True
        assert self.thread is not None, "it has started"
        self._pool.replace(self.thread)
        if not self.future.done():
            self.future.set_exception(InternalError(f"Tokenizing took more than {self._pool.patience:g} s; given up."))

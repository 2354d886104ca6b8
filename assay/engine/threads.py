"""Daemon threads that run calls for an event loop, and are given up when they do not come back. Knows no tokenizer.

A pattern in a stranger's tokenizer can take for ever on one text, and no thread can be killed. Such a call loses its
caller and its thread; the thread is replaced a few times, and then the owner hears that it is no use. One that comes
back after all, on a machine that was busy, does not count.

Small calls that wait for a thread go through it together, since each hand-over of the interpreter between threads costs
more than a short text. Where such a round does not come back, each of its calls is run again alone, and the one that is
at fault is found.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, TypeVar

from assay.errors import AssayError, InternalError

Result = TypeVar("Result")
Outcome = tuple[Any, Exception | None]

_log = logging.getLogger("assay.engine")
_JOIN_SECONDS = 5.0
_ROUND_WEIGHT = 4096  # of a round of several calls: tokens, about ten milliseconds' work
_SOON_SECONDS = 0.02  # in which a round that has just begun is expected to end
_ROUND_SECONDS = 1.0  # after which a round of several calls is taken apart


class Threads:
    """patience: seconds after which a running call is given up. spares: threads that may hang at once; with the next
    one, `on_lost` is called on the loop. lost: those that were given up so far, whether they came back or not.
    together: runs several calls of `run_together`, given a tuple of arguments each; one result or error for each.
    """

    def __init__(
        self,
        count: int,
        name: str,
        patience: float,
        spares: int = 8,
        on_lost: Callable[[], None] = lambda: None,
        together: Callable[[Seq[tuple[Any, ...]]], Seq[Any]] = lambda items: [],
    ) -> None:
        self.patience = patience
        self.on_lost = on_lost
        self.together = together
        self.lost = 0
        self.line: deque[_Job] = deque()
        self.ready = threading.Condition(threading.Lock())  # guards the line for threads, and `_closing`
        self._closing: AssayError | None = None
        self._spares = spares
        self._hanging = 0
        self._name = name
        self._count = count
        self._hands: list[_Hand] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._telling = False  # the threads hear of the line at the end of this turn of the loop
        self._timer: asyncio.TimerHandle | None = None

    def run(self, call: Callable[..., Result], *args: Any) -> "asyncio.Future[Result]":
        """The call's result or its error; InternalError for a call that did not come back."""
        return self._queued(call, args, _ROUND_WEIGHT)

    def run_together(self, weight: int, *args: Any) -> "asyncio.Future[Any]":
        """What `together` makes of these arguments, maybe with others'. weight: how long it takes, in tokens."""
        return self._queued(None, args, weight)

    def _queued(self, call: Callable[..., Any] | None, args: tuple[Any, ...], weight: int) -> "asyncio.Future[Any]":
        if self._closing is not None:
            raise self._closing
        if self._loop is None:  # on first use, so that nothing starts before there is a loop
            self._loop = asyncio.get_running_loop()
            for _ in range(self._count):
                self._start()
        future: asyncio.Future[Any] = self._loop.create_future()
        self.line.append(_Job(future, call, args, weight))
        self._tell_soon()
        return future

    def _tell_soon(self) -> None:
        if not self._telling and self._loop is not None:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        """Wake as many threads as there are rounds in the line, but for those that will look at it in a moment: another
        one would take parts of their next rounds, and the interpreter with them.
        """
        self._telling = False
        now = time.monotonic()
        soon = sum(hand.round is not None and hand.round.ends_soon(now) for hand in self._hands)
        with self.ready:
            weight = sum(job.weight for job in self.line)
            self.ready.notify(max(0, 1 + weight // _ROUND_WEIGHT - soon))
        self._watch()

    def take(self) -> "_Round | None":
        """On a thread: what it runs next; sleeps while there is nothing; None to end."""
        with self.ready:
            while not self.line:
                if self._closing is not None:
                    return None
                self.ready.wait()
            jobs = [self.line.popleft()]
            room = _ROUND_WEIGHT - jobs[0].weight
            while self.line and self.line[0].weight <= room:
                room -= self.line[0].weight
                jobs.append(self.line.popleft())
        return _Round(jobs)

    def deliver(self, jobs: "list[_Job]", outcomes: list[Outcome]) -> None:
        """On a thread: tell the callers."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_settle, jobs, outcomes)

    def _start(self) -> None:
        hand = _Hand(self, f"{self._name}-{len(self._hands)}")
        self._hands.append(hand)
        hand.start()

    def _watch(self) -> None:
        """One timer for all threads: a timer a call costs as much as the call's place in the line."""
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(min(self.patience, _ROUND_SECONDS), self._check)

    def _check(self) -> None:
        """On the loop: it has been a while. Time in the line does not count."""
        self._timer = None
        busy = [(hand, hand.round) for hand in self._hands if hand.round is not None]
        now, next_look = time.monotonic(), self.patience
        for hand, running in busy:
            alone = len(running.jobs) == 1
            left = running.started + (self.patience if alone else min(self.patience, _ROUND_SECONDS)) - now
            if left <= 0 and hand.give_up(running):
                self._replace(hand, running)
            else:
                next_look = min(next_look, left)
        if self.line:  # maybe left to a thread that did not come back so soon
            self._tell_soon()
        if (busy or self.line) and self._loop is not None and self._hands:
            self._timer = self._loop.call_later(max(0.001, min(next_look, _ROUND_SECONDS)), self._check)

    def _replace(self, hand: "_Hand", stuck: "_Round") -> None:
        """On the loop: this thread does not come back."""
        self._hands.remove(hand)
        origin = stuck.jobs[0].origin
        if origin is not None and not origin.repeated:  # the loss of its round was counted
            origin.repeated = True
        else:
            hand.counts = True
            self.lost += 1
            self._hanging += 1
        if len(stuck.jobs) == 1:
            _log.error("A tokenizer thread is given up after %g s (%d hang).", self.patience, self._hanging)
        else:
            _log.warning("%d calls take the tokenizer long; each is run again alone.", len(stuck.jobs))
        if self._hanging > self._spares:
            self._give_up(stuck)
            return
        if self._closing is None:
            self._start()
        if len(stuck.jobs) == 1:
            _settle(stuck.jobs, [(None, self._too_late())])
        else:
            self.line.extendleft(job.alone(stuck) for job in reversed(stuck.jobs) if not job.future.done())
            self._tell_soon()

    def came_back(self, hand: "_Hand") -> None:
        """On that thread, which was given up: it did not hang."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._count_back, hand)

    def _count_back(self, hand: "_Hand") -> None:
        self._hanging -= hand.counts

    def _too_late(self) -> InternalError:
        return InternalError(f"Tokenizing took more than {self.patience:g} s; given up.")

    def _give_up(self, stuck: "_Round") -> None:
        """Too many are lost: nothing more is taken, and nobody waits for a thread that does not come."""
        self.on_lost()
        with self.ready:
            self._closing = self._too_late()
            waiting = [*stuck.jobs, *self.line]
            self.line.clear()
            self.ready.notify_all()
        _settle(waiting, [(None, self._closing)] * len(waiting))

    def close(self, error: AssayError) -> None:
        """Calls that wait get `error`; those that run end, unless they take too long. From any thread."""
        with self.ready:
            self._closing = error
            waiting = list(self.line)
            self.line.clear()
            self.ready.notify_all()
        self.deliver(waiting, [(None, error)] * len(waiting))
        deadline = time.monotonic() + _JOIN_SECONDS
        for hand in list(self._hands):
            hand.join(max(0.0, deadline - time.monotonic()))


class _Job:
    """One call and its future. call: None is one of `together`. origin: the round that it was given up with."""

    __slots__ = ("args", "call", "future", "origin", "weight")

    def __init__(
        self, future: "asyncio.Future[Any]", call: Callable[..., Any] | None, args: tuple[Any, ...], weight: int
    ) -> None:
        self.future = future
        self.call = call
        self.args = args
        self.weight = weight
        self.origin: _Round | None = None

    def alone(self, origin: "_Round") -> "_Job":
        again = _Job(self.future, self.call, self.args, _ROUND_WEIGHT)
        again.origin = origin
        return again

    def outcome(self, together: Callable[[Seq[tuple[Any, ...]]], Seq[Any]]) -> Outcome:
        try:
            result = self.call(*self.args) if self.call is not None else together([self.args])[0]
        except (StopIteration, StopAsyncIteration) as error:  # no future takes these
            return None, InternalError(f"Tokenizing failed: {type(error).__name__}.")
        except Exception as error:  # an edge: the caller is told
            return None, error
        except BaseException as error:  # a panic of the tokenizer's library
            _log.error("The tokenizer's library failed: %s.", type(error).__name__)
            return None, InternalError("The tokenizer's library failed on this input.")
        return (None, result) if isinstance(result, Exception) else (result, None)


class _Round:
    """The calls that a thread runs in one go. repeated: one of them was given up a second time, alone."""

    __slots__ = ("jobs", "repeated", "started", "weight")

    def __init__(self, jobs: list[_Job]) -> None:
        self.jobs = jobs
        self.weight = sum(job.weight for job in jobs)
        self.started = time.monotonic()
        self.repeated = False

    def ends_soon(self, now: float) -> bool:
        """Whether it is small and has just begun."""
        return self.weight < _ROUND_WEIGHT and now - self.started < _SOON_SECONDS

    def outcomes(self, together: Callable[[Seq[tuple[Any, ...]]], Seq[Any]]) -> list[Outcome]:
        """One for each call. Whatever goes wrong with several at once is left to each one alone."""
        if len(self.jobs) > 1 and all(job.call is None for job in self.jobs):
            try:
                results = together([job.args for job in self.jobs])
                assert len(results) == len(self.jobs), "one result for each call"
                return [(None, result) if isinstance(result, Exception) else (result, None) for result in results]
            except BaseException as error:  # an edge: the one at fault is found below, and its caller is told
                _log.debug("A round is run one by one after %s.", type(error).__name__)
        return [job.outcome(together) for job in self.jobs]


class _Hand(threading.Thread):
    """One of the threads. round: what it runs, if anything. counts: among those that hang."""

    def __init__(self, pool: Threads, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.round: _Round | None = None
        self.counts = False
        self._pool = pool
        self._end = threading.Lock()  # a round ends, or it is given up, not both
        self._given_up = False

    def run(self) -> None:
        pool = self._pool
        while (taken := pool.take()) is not None:
            taken.jobs = [job for job in taken.jobs if not job.future.done()]
            if not taken.jobs:
                continue
            self.round = taken
            outcomes = taken.outcomes(pool.together)
            pool.deliver(taken.jobs, outcomes)
            with self._end:
                self.round = None
                given_up = self._given_up
            if given_up:  # it is replaced
                pool.came_back(self)
                return

    def give_up(self, stuck: _Round) -> bool:
        """On the loop. Whether it still was at it."""
        with self._end:
            self._given_up = self.round is stuck
            return self._given_up


class Later(threading.Timer):
    """A call on a daemon thread of its own, some seconds after `start`, unless it is given up before."""

    def __init__(self, seconds: float, call: Callable[[], None], name: str) -> None:
        super().__init__(seconds, call)
        self.name, self.daemon = name, True

    def give_up(self) -> None:
        """If the call has begun, wait for its end."""
        self.cancel()
        if self.is_alive():
            self.join()


def _settle(jobs: list[_Job], outcomes: list[Outcome]) -> None:
    """On the loop. Who was run twice has had the first answer."""
    for job, (result, error) in zip(jobs, outcomes, strict=True):
        if job.future.done():
            continue
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

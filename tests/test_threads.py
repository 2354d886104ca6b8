"""Threads that take small calls together: who gets which answer, and what one bad call costs its neighbours."""

import asyncio
import threading
from collections.abc import Sequence as Seq
from typing import Any

import pytest

from assay.engine import threads
from assay.engine.threads import Threads
from assay.errors import AssayError, InternalError, RequestError, UnavailableError

BIG = 10_000  # tokens: more than a round holds


class Doubling:
    """`together` of a pool: doubles numbers; "bad" is refused, "raise" fails whole, a threading.Event is waited for."""

    def __init__(self) -> None:
        self.rounds: list[list[Any]] = []
        self.threads: list[str] = []  # that ran them
        self.begun = threading.Event()

    def __call__(self, items: Seq[tuple[Any, ...]]) -> Seq[Any]:
        self.rounds.append([item for (item,) in items])
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        for (item,) in items:
            if item == "raise":
                raise ValueError("broken")
            if isinstance(item, threading.Event):
                item.wait(30)
        return [RequestError("bad") if item == "bad" else 0 if isinstance(item, threading.Event) else 2 * item
                for (item,) in items]  # fmt: skip


async def settled(*calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def blocked(pool: Threads) -> tuple["asyncio.Task[Any]", threading.Event]:
    """The pool's one thread, held up, so that what follows waits in the line."""
    release, started = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        release.wait(30)

    task = asyncio.ensure_future(pool.run(hold))
    await asyncio.to_thread(started.wait, 30)
    return task, release


async def test_what_waits_is_run_together_and_each_gets_its_own() -> None:
    doubling = Doubling()
    pool = Threads(1, "test", 60, together=doubling)
    held, release = await blocked(pool)
    calls = [asyncio.ensure_future(pool.run_together(1, n)) for n in range(20)]
    await asyncio.sleep(0)
    release.set()
    assert await settled(*calls) == [2 * n for n in range(20)]
    assert doubling.rounds == [list(range(20))]
    await held
    pool.close(UnavailableError("over"))


async def test_a_thread_that_ends_soon_is_left_what_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SOON_SECONDS", 60)
    doubling, hold = Doubling(), threading.Event()
    pool = Threads(2, "test", 60, together=doubling)
    first = pool.run_together(1, hold)
    await asyncio.to_thread(doubling.begun.wait, 30)
    calls = [pool.run_together(1, n) for n in range(5)]
    await asyncio.sleep(0.05)
    assert not any(call.done() for call in calls)
    hold.set()
    await settled(first, *calls)
    assert len(doubling.rounds) == 2
    assert len(set(doubling.threads)) == 1
    pool.close(UnavailableError("over"))


async def test_what_was_left_to_a_thread_that_does_not_end_soon_is_run_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SOON_SECONDS", 0.2)
    monkeypatch.setattr(threads, "_ROUND_SECONDS", 0.05)
    doubling, hold = Doubling(), threading.Event()
    pool = Threads(2, "test", 60, together=doubling)
    first = pool.run_together(1, hold)
    await asyncio.to_thread(doubling.begun.wait, 30)
    assert await asyncio.wait_for(pool.run_together(1, 21), 20) == 42
    hold.set()
    await first
    pool.close(UnavailableError("over"))


async def test_a_large_round_is_not_waited_for() -> None:
    pool = Threads(2, "test", 60, together=Doubling())
    held, release = await blocked(pool)
    assert await asyncio.wait_for(pool.run_together(1, 21), 20) == 42
    release.set()
    await held
    pool.close(UnavailableError("over"))


async def test_a_round_has_a_bound_and_heavy_calls_go_alone() -> None:
    doubling = Doubling()
    pool = Threads(1, "test", 60, together=doubling)
    held, release = await blocked(pool)
    calls = [pool.run_together(weight, n) for n, weight in enumerate([1500, 1500, 1500, BIG, 1])]
    gathered = asyncio.ensure_future(settled(*calls))
    await asyncio.sleep(0)
    release.set()
    assert await gathered == [0, 2, 4, 6, 8]
    assert doubling.rounds == [[0, 1], [2], [3], [4]]
    await held
    pool.close(UnavailableError("over"))


async def test_one_that_is_refused_or_breaks_the_round_costs_the_others_nothing() -> None:
    for culprit, error in (("bad", RequestError), ("raise", ValueError)):
        doubling = Doubling()
        pool = Threads(1, "test", 60, together=doubling)
        held, release = await blocked(pool)
        gathered = asyncio.ensure_future(settled(*(pool.run_together(1, item) for item in (1, culprit, 3))))
        await asyncio.sleep(0)
        release.set()
        first, second, third = await gathered
        assert (first, third) == (2, 6)
        assert isinstance(second, error)
        await held
        pool.close(UnavailableError("over"))


async def test_a_caller_that_has_gone_is_not_computed() -> None:
    doubling = Doubling()
    pool = Threads(1, "test", 60, together=doubling)
    held, release = await blocked(pool)
    gone, stays = (asyncio.ensure_future(pool.run_together(1, n)) for n in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await stays == 4
    assert doubling.rounds == [[2]]
    await held
    pool.close(UnavailableError("over"))


async def test_a_round_that_does_not_come_back_is_taken_apart() -> None:
    """Its innocent calls are answered by another thread, and the one at fault is given up: one thread is lost."""
    hanging = threading.Event()
    pool = Threads(1, "test", 0.5, together=Doubling())
    held, release = await blocked(pool)
    gathered = asyncio.ensure_future(settled(*(pool.run_together(1, item) for item in (1, hanging, 3))))
    await asyncio.sleep(0)
    release.set()
    try:
        first, second, third = await asyncio.wait_for(gathered, 20)
        assert (first, third) == (2, 6)
        assert isinstance(second, InternalError)
        assert pool.lost == 1
        await held
        assert await pool.run_together(1, 21) == 42
    finally:
        hanging.set()
    pool.close(UnavailableError("over"))


async def test_too_many_lost_threads_tell_everyone_who_waits() -> None:
    hanging, lost = threading.Event(), []
    pool = Threads(1, "test", 0.2, spares=0, on_lost=lambda: lost.append(True), together=Doubling())
    try:
        calls = [pool.run_together(BIG, hanging), pool.run_together(BIG, 1), pool.run_together(BIG, 2)]
        outcomes = await asyncio.wait_for(settled(*calls), 20)
        assert all(isinstance(outcome, InternalError) for outcome in outcomes)
        assert lost == [True]
        with pytest.raises(AssayError):
            await pool.run_together(1, 1)
    finally:
        hanging.set()


async def test_a_thread_that_comes_back_after_all_is_not_among_those_that_hang() -> None:
    """However many are given up on a machine that is busy, and come back later: no more hang at once than may."""
    lost: list[bool] = []
    pool = Threads(1, "test", 0.2, spares=1, on_lost=lambda: lost.append(True))
    for _ in range(3):
        release, busy = threading.Event(), []

        def hold(release: threading.Event = release, busy: list[threading.Thread] = busy) -> None:
            busy.append(threading.current_thread())
            release.wait(30)

        with pytest.raises(InternalError):
            await asyncio.wait_for(pool.run(hold), 20)
        release.set()
        await asyncio.to_thread(busy[0].join, 20)
        await asyncio.sleep(0)  # for the loop to hear of it
    assert pool.lost == 3
    assert not lost
    pool.close(UnavailableError("over"))


async def test_closing_tells_those_in_the_line() -> None:
    pool = Threads(1, "test", 60, together=Doubling())
    held, release = await blocked(pool)
    waiting = asyncio.ensure_future(settled(pool.run_together(1, 1)))
    await asyncio.sleep(0)
    release.set()
    await asyncio.to_thread(pool.close, UnavailableError("over"))
    (outcome,) = await waiting
    assert outcome == 2 or isinstance(outcome, UnavailableError)
    await settled(held)
    with pytest.raises(UnavailableError, match="over"):
        await pool.run_together(1, 1)


async def test_many_callers_from_many_turns_of_the_loop() -> None:
    pool = Threads(3, "test", 60, together=Doubling())

    async def caller(n: int) -> None:
        for i in range(50):
            assert await pool.run_together(1 + (n * i) % 3000, n + i) == 2 * (n + i)

    await asyncio.wait_for(asyncio.gather(*(caller(n) for n in range(40))), 60)
    pool.close(UnavailableError("over"))

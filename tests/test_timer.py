"""A connection's timer: it rings when it is set for and at no other time, and seldom asks the loop for that."""

from collections.abc import Callable
from typing import Any

import pytest

from assay.server.timer import Timer


class Loop:
    """Its clock is turned by hand. asked: how often for a timer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self._calls: list[_Call] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, then: Callable[[], None]) -> "_Call":
        self.asked += 1
        self._calls.append(_Call(self.now + seconds, then))
        return self._calls[-1]

    def turn(self, until: float) -> None:
        while due := [call for call in self._calls if call.at <= until and not call.cancelled]:
            first = min(due, key=lambda call: call.at)
            self._calls.remove(first)
            self.now = max(self.now, first.at)
            first.then()
        self.now = until


class _Call:
    def __init__(self, at: float, then: Callable[[], None]) -> None:
        self.at, self.then, self.cancelled = at, then, False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def loop() -> Any:
    return Loop()


@pytest.fixture
def rung() -> list[str]:
    return []


def test_it_rings_once_in_time(loop: Any, rung: list[str]) -> None:
    timer = Timer(loop)
    timer.set(5, lambda: rung.append(f"a {loop.now:g}"))
    loop.turn(4.9)
    assert rung == []
    loop.turn(20)
    assert rung == ["a 5"]
    timer.set(5, lambda: rung.append(f"b {loop.now:g}"))
    loop.turn(40)
    assert rung == ["a 5", "b 25"]


def test_who_is_always_in_time_is_never_rung_for_and_the_loop_is_asked_seldom(loop: Any, rung: list[str]) -> None:
    timer = Timer(loop)
    for request in range(1000):
        timer.set(5, lambda: rung.append("late"))
        loop.turn(request / 100)
        timer.unset()
    assert rung == []
    assert loop.asked <= 3, "ten seconds of a timer of five"
    timer.set(5, lambda: rung.append(f"late {loop.now:g}"))
    loop.turn(60)
    assert rung == ["late 14.99"]


def test_a_shorter_time_is_kept_though_a_longer_one_was_set(loop: Any, rung: list[str]) -> None:
    timer = Timer(loop)
    timer.set(10, lambda: rung.append("long"))
    timer.unset()
    timer.set(2, lambda: rung.append(f"short {loop.now:g}"))
    loop.turn(60)
    assert rung == ["short 2"]


def test_it_is_silent_after_the_end(loop: Any, rung: list[str]) -> None:
    timer = Timer(loop)
    timer.set(5, lambda: rung.append("a"))
    timer.end()
    loop.turn(60)
    assert rung == []
    assert loop.asked == 1

"""What is written in one turn of the event loop goes out at its end, in order, and none of it is lost."""

import asyncio

import pytest

from assay.server.outbox import Outbox, Turn


class Wire(asyncio.Transport):
    """said: everything that happened to any of them, in order."""

    def __init__(self, name: str, said: list[str]) -> None:
        super().__init__()
        self.name = name
        self.said = said

    def is_closing(self) -> bool:
        return bool(self.said) and self.said[-1] == f"{self.name} closed"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said.append(f"{self.name} {bytes(data).decode()[:8]}")

    def write_eof(self) -> None:
        self.said.append(f"{self.name} eof")

    def close(self) -> None:
        self.said.append(f"{self.name} closed")

    def abort(self) -> None:
        self.said.append(f"{self.name} aborted")

    def get_write_buffer_size(self) -> int:
        return 10


class Broken(Wire):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError("a bug")


def outboxes() -> tuple[Outbox, Outbox, list[str]]:
    said: list[str] = []
    turn = Turn(asyncio.get_running_loop())
    return Outbox(Wire("a", said), turn), Outbox(Wire("b", said), turn), said


async def test_what_is_written_goes_out_at_the_end_of_the_turn() -> None:
    a, b, said = outboxes()
    for number in range(2):
        a.write(b"one")
        b.write(b"two")
        assert len(said) == 2 * number
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert said == ["a one", "b two"] * 2


async def test_callbacks_that_are_ready_come_before_it() -> None:
    a, b, said = outboxes()
    loop = asyncio.get_running_loop()
    loop.call_soon(b.write, b"two")
    a.write(b"one")
    loop.call_soon(said.append, "behind")
    for _ in range(3):
        await asyncio.sleep(0)
    assert said == ["a one", "b two", "behind"]


async def test_a_second_write_follows_the_first() -> None:
    a, _, said = outboxes()
    for piece in (b"one", b"two", b"three"):
        a.write(piece)
    await asyncio.sleep(0)
    assert said == ["a one", "a two", "a three"]


async def test_much_is_not_kept() -> None:
    a, _, said = outboxes()
    a.write(b"x" * 100_000)
    assert said == ["a xxxxxxxx"]


@pytest.mark.parametrize(("how", "end"), [("close", "closed"), ("write_eof", "eof")])
async def test_a_connection_that_ends_has_sent_everything(how: str, end: str) -> None:
    a, _, said = outboxes()
    a.write(b"one")
    getattr(a, how)()
    await asyncio.sleep(0)
    assert said == ["a one", f"a {end}"]


async def test_a_connection_that_has_ended_by_itself_is_sent_nothing() -> None:
    a, _, said = outboxes()
    a.write(b"one")
    said.append("a closed")
    await asyncio.sleep(0)
    assert said == ["a closed"]


async def test_what_is_wrong_with_one_connection_keeps_no_answer_from_another(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    turn = Turn(asyncio.get_running_loop())
    first, second = Outbox(Broken("a", said), turn), Outbox(Wire("b", said), turn)
    first.write(b"one")
    second.write(b"two")
    await asyncio.sleep(0)
    assert said == ["b two"]
    assert "RuntimeError" in caplog.text


async def test_a_connection_that_is_cut_off_sends_nothing_more() -> None:
    a, _, said = outboxes()
    a.write(b"one")
    assert a.get_write_buffer_size() == 13
    a.abort()
    await asyncio.sleep(0)
    assert said == ["a aborted"]

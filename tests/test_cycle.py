"""One request and its answer: an answer is one write, and says itself how long it is."""

import asyncio
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from assay.server.cycle import Cycle

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
LENGTH = [(b"content-length", b"4")]


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False


def cycle(method: str = "POST", keep_alive: bool = True, expects: bool = False) -> tuple[Cycle, list[bytes]]:
    wire = Wire()
    made = Cycle(
        {"type": "http", "method": method},
        wire,
        FlowControl(wire),
        default_headers=[],
        keep_alive=keep_alive,
        waiting_for_100_continue=expects,
        close=lambda: wire.written.append(b"<closed>"),
        on_response=lambda: wire.written.append(b"<done>"),
    )
    return made, wire.written


async def answer(made: Cycle, headers: list[tuple[bytes, bytes]], *bodies: bytes, status: int = 200) -> None:
    await made.send({"type": "http.response.start", "status": status, "headers": headers})
    for number, body in enumerate(bodies, 1):
        await made.send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})


async def test_a_head_and_its_body_are_one_write() -> None:
    made, written = cycle()
    await answer(made, LENGTH, b"one ")
    assert written == [HEAD + b"one ", b"<done>"]


async def test_pieces_of_a_long_answer_follow_each_other() -> None:
    made, written = cycle()
    await answer(made, LENGTH, b"on", b"e", b" ")
    assert written == [HEAD + b"on", b"e", b" ", b"<done>"]


async def test_an_answer_of_unknown_length_comes_in_chunks() -> None:
    made, written = cycle()
    await answer(made, [], b"one", b"", b"two")
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert written == [head + b"3\r\none\r\n", b"3\r\ntwo\r\n0\r\n\r\n", b"<done>"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_an_answer_without_a_body_is_its_head(method: str, status: int) -> None:
    made, written = cycle(method)
    await answer(made, [], b"", status=status)
    assert written[0].startswith(b"HTTP/1.1 %d " % status)
    assert written[0].endswith(b"\r\n\r\n")
    assert b"transfer-encoding" not in written[0]
    assert written[1:] == [b"<done>"]


async def test_a_head_that_is_asked_for_alone_says_the_body_s_length() -> None:
    made, written = cycle("HEAD")
    await answer(made, LENGTH, b"one ")
    assert written == [HEAD, b"<done>"]


async def test_the_last_answer_of_a_connection_says_so_and_closes_it() -> None:
    made, written = cycle(keep_alive=False)
    await answer(made, LENGTH, b"one ")
    assert written == [HEAD[:-2] + b"connection: close\r\n\r\none ", b"<closed>", b"<done>"]
    made, written = cycle()
    await answer(made, [(b"connection", b"close"), *LENGTH], b"one ")
    assert written[0].count(b"connection: close") == 1
    assert written[1] == b"<closed>"


@pytest.mark.parametrize("bodies", [(b"one",), (b"one two",), (b"one ", b"two")])
async def test_a_body_of_another_length_than_its_head_says_is_a_bug(bodies: tuple[bytes, ...]) -> None:
    made, _ = cycle()
    with pytest.raises(RuntimeError, match="length"):
        await answer(made, LENGTH, *bodies)


@pytest.mark.parametrize("header", [(b"x-a", b"b\r\nx-c: d"), (b"x-a", b"b\n"), (b"x-a\r", b"b")])
async def test_a_header_cannot_bring_another(header: tuple[bytes, bytes]) -> None:
    made, written = cycle()
    with pytest.raises(RuntimeError, match="line break"):
        await answer(made, [header, *LENGTH], b"one ")
    assert not written


async def test_an_answer_ends_once() -> None:
    made, _ = cycle()
    await answer(made, LENGTH, b"one ")
    with pytest.raises(RuntimeError, match="behind its end"):
        await made.send({"type": "http.response.body", "body": b"more"})


async def test_a_client_that_waits_for_leave_to_send_gets_it_when_it_is_read() -> None:
    made, written = cycle(expects=True)
    assert not written
    made.add_body(b"some")
    assert await made.receive() == {"type": "http.request", "body": b"some", "more_body": True}
    assert written == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_a_body_comes_as_it_comes_and_then_its_client_s_end() -> None:
    made, _ = cycle()

    async def read() -> list[dict[str, Any]]:
        return [dict(await made.receive()) for _ in range(3)]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    made.add_body(b"so")
    await asyncio.sleep(0)
    made.add_body(b"me")
    made.end_body()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not reading.done(), "behind the body it waits for the client to go"
    made.leave()
    assert await reading == [
        {"type": "http.request", "body": b"so", "more_body": True},
        {"type": "http.request", "body": b"me", "more_body": False},
        {"type": "http.disconnect"},
    ]


async def test_a_bug_in_an_answer_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    made, written = cycle()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": LENGTH})
        raise ValueError(" ".join(["what", "a", "caller", "wrote"]))

    await made.run(app)
    assert written == [b"<closed>"]
    assert "ValueError" in caplog.text
    assert "what a caller wrote" not in caplog.text


async def test_who_is_given_up_before_an_answer_is_told() -> None:
    made, written = cycle()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(made.run(app))
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert written[0].startswith(b"HTTP/1.1 500 ")
    assert b"connection: close\r\n" in written[0]
    assert written[1:] == [b"<closed>", b"<done>"]

"""An answer is one write, and nothing of it stays behind."""

import asyncio

from assay.server.door import Door

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


def door() -> tuple[Door, list[bytes]]:
    wire = Wire()
    return Door(wire, lambda: wire.written.append(b"closed")), wire.written


def test_a_head_and_its_body_are_one_write() -> None:
    answers, written = door()
    for body in (b"one ", b"two "):
        answers.write(HEAD)
        answers.write(body)
    assert written == [HEAD + b"one ", HEAD + b"two "]


def test_a_head_without_a_body_is_written_at_the_end() -> None:
    answers, written = door()
    answers.write(HEAD)
    answers.flush()
    answers.flush()
    answers.write(HEAD)
    answers.close()
    assert written == [HEAD, HEAD, b"closed"]


def test_a_client_that_waits_for_leave_to_send_gets_it_at_once() -> None:
    answers, written = door()
    answers.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert written == [b"HTTP/1.1 100 Continue\r\n\r\n"]


def test_pieces_of_a_long_answer_follow_each_other() -> None:
    answers, written = door()
    for piece in (HEAD, b"HTTP/1.1 is", b" what ", b"HTTP/1.1 says"):
        answers.write(piece)
    answers.flush()
    assert b"".join(written) == HEAD + b"HTTP/1.1 is what HTTP/1.1 says"

"""Who waits for a request's answers: its future, and how many are still out. Knows no queue and no thread."""

import asyncio

from assay.errors import AssayError
from assay.sequence import Prediction


class Waiter:
    """The future of one classify call, and how many of its answers are still out."""

    def __init__(self, future: "asyncio.Future[list[Prediction]]", count: int) -> None:
        self.future = future
        self.remaining = count
        self._predictions: list[Prediction | None] = [None] * count

    def put(self, index: int, answer: Prediction | AssayError) -> None:
        if isinstance(answer, AssayError):
            self.fail(answer)
        elif not self.future.done():
            self._predictions[index] = answer
            self.remaining -= 1
            if not self.remaining:
                self.future.set_result([p for p in self._predictions if p is not None])

    def fail(self, error: AssayError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

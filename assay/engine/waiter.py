"""Who waits for a request: its future, what is still out, and where it belongs. Knows no queue and no thread."""

import asyncio
from collections.abc import Sequence as Seq

from msgspec.structs import replace

from assay.errors import AssayError
from assay.sequence import Prediction, Sequence


class Waiter:
    """The future of one classify call, and which of its answers are still out.

    out: what has no answer yet, in order, and the places of its answer; of equal sequences the first, whose answer is
        the others' too.
    """

    def __init__(self, future: "asyncio.Future[list[Prediction]]", sequences: Seq[Sequence]) -> None:
        self.future = future
        self._predictions: list[Prediction | None] = [None] * len(sequences)
        if len(sequences) == 1:
            self.out = {sequences[0]: [0]}
            return
        self.out = {}
        firsts: dict[bytes, Sequence] = {}
        for place, sequence in enumerate(sequences):
            self.out.setdefault(firsts.setdefault(sequence.content, sequence), []).append(place)

    def put(self, sequence: Sequence, answer: Prediction | AssayError) -> None:
        if isinstance(answer, AssayError):
            self.fail(answer)
        elif not self.future.done():
            first, *others = self.out.pop(sequence)
            self._predictions[first] = answer
            for place in others:
                self._predictions[place] = answer.copied(replace(answer.timings))
            if not self.out:
                self.future.set_result([p for p in self._predictions if p is not None])

    def fail(self, error: AssayError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

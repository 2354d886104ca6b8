"""Who waits for a request: its future, what is still out, and where it belongs. Knows no queue and no thread."""

import asyncio
from collections.abc import Sequence as Seq

from msgspec.structs import replace

from assay.errors import AssayError
from assay.sequence import Prediction, Sequence


class Waiter:
    """The future of one classify call, and which of its answers are still out."""

    def __init__(self, future: "asyncio.Future[list[Prediction]]", sequences: Seq[Sequence]) -> None:
        self.future = future
        self._predictions: list[Prediction | None] = [None] * len(sequences)
        firsts: dict[bytes, Sequence] = {}
        self._places: dict[Sequence, list[int]] = {}
        for place, sequence in enumerate(sequences):
            self._places.setdefault(firsts.setdefault(sequence.content, sequence), []).append(place)

    @property
    def out(self) -> list[Sequence]:
        """What has no answer yet, in order; of equal sequences the first, whose answer is the others' too."""
        return list(self._places)

    def put(self, sequence: Sequence, answer: Prediction | AssayError) -> None:
        if isinstance(answer, AssayError):
            self.fail(answer)
        elif not self.future.done():
            first, *others = self._places.pop(sequence)
            self._predictions[first] = answer
            for place in others:
                self._predictions[place] = answer.copied(replace(answer.timings))
            if not self._places:
                self.future.set_result([p for p in self._predictions if p is not None])

    def fail(self, error: AssayError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

"""Which sequences the device takes next: policy over plain data. Knows no torch, no threads and no clock.

Nothing here waits: a batch is formed from what is there when the device can take it. The order is by priority, then
by a fair time: a request's n-th token counts as arriving n * SECONDS_PER_TOKEN after the request did. So a short
request overtakes the tail of a long one, and every sequence's turn comes, since later requests get later times.
"""

import heapq
from collections.abc import Iterable
from itertools import count

from assay.sequence import Sequence

# The pace at which a request's later tokens lose their place to newcomers: about a small model's speed on two cores.
SECONDS_PER_TOKEN = 1e-4


class Scheduler:
    """A queue of sequences and the rule that cuts batches from it.

    max_batch_tokens: the budget of one batch; a longer sequence makes a batch of its own.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.num_tokens = 0
        self.num_sequences = 0
        self._heap: list[tuple[int, float, int, Sequence]] = []
        self._order = count()

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of one request."""
        tokens_before = 0
        for sequence in sequences:
            fair_time = sequence.arrival + tokens_before * SECONDS_PER_TOKEN
            heapq.heappush(self._heap, (-sequence.priority, fair_time, next(self._order), sequence))
            tokens_before += sequence.num_tokens
            self.num_tokens += sequence.num_tokens
            self.num_sequences += 1
            sequence.queued = True

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Nobody waits for these any more. Queued ones stop counting now and are skipped when their turn comes."""
        for sequence in sequences:
            sequence.cancelled = True
            if sequence.queued:
                self._leave(sequence)

    def next_batch(self, now: float = 0.0) -> list[Sequence]:
        """The next batch within the token budget, or [] when nothing waits.

        now: in seconds on the monotonic clock; what has a deadline before it is dropped, for its caller has the error.
        """
        batch: list[Sequence] = []
        room = self.max_batch_tokens
        while self._heap:
            sequence = self._heap[0][-1]
            if not sequence.cancelled and sequence.deadline <= now:
                self._leave(sequence)
            elif not sequence.cancelled:
                if batch and sequence.num_tokens > room:
                    break
                batch.append(sequence)
                room -= sequence.num_tokens
                self._leave(sequence)
            heapq.heappop(self._heap)
        return batch

    def drain(self) -> list[Sequence]:
        """Everything that waits, in order; the queue is empty afterwards."""
        waiting = [entry[-1] for entry in sorted(self._heap) if not entry[-1].cancelled]
        for sequence in waiting:
            self._leave(sequence)
        self._heap.clear()
        return waiting

    def _leave(self, sequence: Sequence) -> None:
        sequence.queued = False
        self.num_tokens -= sequence.num_tokens
        self.num_sequences -= 1

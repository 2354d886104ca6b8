"""Which sequences the device takes next: policy over plain data. Knows no torch, no threads and no clock.

Nothing here waits: a batch is formed from what is there when the device can take it. The order is by priority, then by
turn, as in weighted fair queueing (Demers, Keshav and Shenker 1989). Turns are on a clock that moves on by the tokens
served over the number of requests that share the device, so that it says how many tokens each of them is due. The turn
of a sequence is when it would be done if its request had its share from the moment it came; but for a request's first,
whose turn is that moment. So single texts are served as they come, and at once however much long requests have queued;
and every turn comes, since later requests get later turns.

A batch of which an eighth is enough for the requests that end with it is not filled up with long ones, of which more
than that waits: those that end would wait for all of it, and hardly anybody would be answered sooner.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable
from itertools import count

from assay.sequence import Sequence

# However many come, whoever waits has at least this part of the device: short requests alone never take all of it.
_MOST_SHARES = 64

Key = tuple[int, float, int]


def _key(sequence: Sequence) -> Key:
    """Of equal turns, the request that came first; within one, turns differ."""
    return -sequence.priority, sequence.turn, sequence.request


class Scheduler:
    """A queue of sequences and the rule that cuts batches from it.

    max_batch_tokens: the budget of one batch; a longer sequence makes a batch of its own.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.num_tokens = 0
        self.num_sequences = 0
        self._heap: list[tuple[Key, Sequence]] = []
        self._numbers = count()
        self._waiting: defaultdict[int, int] = defaultdict(int)  # request → its tokens in the queue
        self._clock = 0.0
        self._clock_before = 0.0  # the batch that was cut last
        self._ends: dict[int, float] = {}  # request → when it would be done; of all that share the device

    def add(self, sequences: Iterable[Sequence], ahead: bool = False) -> None:
        """Queue the sequences of one request. ahead: the batch that was cut last is not computed yet; they came before
        that.
        """
        request, clock = next(self._numbers), self._clock_before if ahead else self._clock
        end = clock
        for sequence in sequences:
            first, end = end == clock, end + sequence.num_tokens
            sequence.turn, sequence.request = clock if first else end, request
            self._enter(sequence)
        self._ends[request] = end

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Nobody waits for these any more. Queued ones stop counting now and are skipped when their turn comes."""
        for sequence in sequences:
            sequence.cancelled = True
            if sequence.queued:
                self._leave(sequence)
                if sequence.request not in self._waiting:
                    del self._ends[sequence.request]

    def next_batch(self, now: float = 0.0) -> list[Sequence]:
        """The next batch within the token budget, or [] when nothing waits.

        now: in seconds on the monotonic clock; what has a deadline before it is dropped, for its caller has the error.
        """
        batch: list[Sequence] = []
        room, ending = self.max_batch_tokens, 0  # the tokens with which requests end
        self._clock_before = self._clock
        self._forget_those_done()
        while self._heap:
            sequence = self._heap[0][-1]
            if not sequence.cancelled and sequence.deadline <= now:
                self._leave(sequence)
            elif not sequence.cancelled:
                if batch and (sequence.num_tokens > room or self._holds_up(sequence, ending, room)):
                    break
                batch.append(sequence)
                room -= sequence.num_tokens
                self._clock += sequence.num_tokens / min(_MOST_SHARES, len(self._ends))
                self._leave(sequence)
                if sequence.request not in self._waiting:
                    ending += sequence.num_tokens
            heapq.heappop(self._heap)
        return batch

    def is_overtaken(self, batch: list[Sequence]) -> bool:
        """Whether something waits whose turn is before one of these, which are not computed yet."""
        return bool(self._heap) and self._heap[0][0] < max(map(_key, batch))

    def put_back(self, batch: list[Sequence]) -> None:
        """The batch that was cut last is not computed after all: they wait again, each with the turn that it had."""
        self._clock = self._clock_before
        for sequence in batch:
            if not sequence.cancelled:
                self._enter(sequence)

    def drain(self) -> list[Sequence]:
        """Everything that waits, in order; the queue is empty afterwards."""
        waiting = [entry[-1] for entry in sorted(self._heap, key=lambda entry: entry[0]) if not entry[-1].cancelled]
        for sequence in waiting:
            self._leave(sequence)
        self._heap.clear()
        return waiting

    def _holds_up(self, sequence: Sequence, ending: int, room: int) -> bool:
        """Whether the batch, with which little ends, is large enough: this one and all that wait are of long ones."""
        enough = self.max_batch_tokens // 8
        return (
            0 < ending <= enough < self.max_batch_tokens - room
            and self._waiting[sequence.request] > enough
            and min(self._waiting.values()) > enough
        )

    def _enter(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (_key(sequence), sequence))
        self._waiting[sequence.request] += sequence.num_tokens
        self.num_tokens += sequence.num_tokens
        self.num_sequences += 1
        sequence.queued = True

    def _forget_those_done(self) -> None:
        """A request that was served before its share was due counts until then, or the clock would run ahead of those
        that wait, and newcomers come after them."""
        self._ends = {
            request: end for request, end in self._ends.items() if request in self._waiting or end > self._clock
        }

    def _leave(self, sequence: Sequence) -> None:
        sequence.queued = False
        self.num_tokens -= sequence.num_tokens
        self.num_sequences -= 1
        self._waiting[sequence.request] -= sequence.num_tokens
        if not self._waiting[sequence.request]:
            del self._waiting[sequence.request]

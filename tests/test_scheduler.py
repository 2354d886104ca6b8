"""The scheduler's promises, as properties over plain data. Nothing here, or in the scheduler, needs torch."""

from collections import Counter
from itertools import chain, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from assay.engine.scheduler import Scheduler
from assay.sequence import Sequence

BUDGET = 32


def request(lengths: list[int], arrival: float = 0.0, priority: int = 0) -> list[Sequence]:
    return [
        Sequence([1] * length, index=index, arrival=arrival, priority=priority) for index, length in enumerate(lengths)
    ]


def serve_all(scheduler: Scheduler) -> list[list[Sequence]]:
    """Every batch until nothing waits."""
    batches: list[list[Sequence]] = []
    while batch := scheduler.next_batch():
        batches.append(batch)
    return batches


def served(scheduler: Scheduler) -> list[Sequence]:
    return [sequence for batch in serve_all(scheduler) for sequence in batch]


class SchedulerMachine(RuleBasedStateMachine):
    """Any interleaving of requests, cancellations, batches and drains, against a plain list of what must wait."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(BUDGET)
        self.now = 0.0
        self.requests: list[list[Sequence]] = []
        self.waiting: list[Sequence] = []
        self.gone: list[Sequence] = []  # served, drained or cancelled: never to be seen again

    @rule(
        lengths=st.lists(st.integers(1, 2 * BUDGET), min_size=0, max_size=12),
        priority=st.integers(-1, 1),
        passed=st.sampled_from([0.0, 1e-4, 1e-3, 1.0]),
    )
    def add(self, lengths: list[int], priority: int, passed: float) -> None:
        self.now += passed
        sequences = request(lengths, self.now, priority)
        self.scheduler.add(sequences)
        self.requests.append(sequences)
        self.waiting += sequences

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Some or all of a request, whatever became of it: waiting, served or cancelled before."""
        chosen = data.draw(st.sampled_from(self.requests))
        kept = data.draw(st.integers(0, len(chosen)))
        self.scheduler.cancel(chosen[kept:])
        for sequence in chosen[kept:]:
            self._leaves(sequence)

    @rule()
    def next_batch(self) -> None:
        top = max((sequence.priority for sequence in self.waiting), default=None)
        heads = [self._waiting_of(one)[:1] for one in self.requests]
        batch = self.scheduler.next_batch()
        assert bool(batch) == bool(self.waiting), "an empty batch while something waits, or the reverse"
        assert len(batch) == 1 or sum(sequence.num_tokens for sequence in batch) <= BUDGET
        if batch:
            assert batch[0].priority == top
            assert [batch[0]] in heads, "a request's sequences are served in order"
        assert [sequence.priority for sequence in batch] == sorted((s.priority for s in batch), reverse=True)
        for one in self.requests:
            mine = [sequence for sequence in batch if sequence in one]
            assert mine == self._waiting_of(one)[: len(mine)]
        self._take(batch)
        left_over = max((sequence.priority for sequence in self.waiting), default=None)
        if batch and left_over is not None:
            assert batch[-1].priority >= left_over

    @rule()
    def form_ahead_and_give_up(self) -> None:
        batch = self.scheduler.next_batch()
        if batch:
            assert not self.scheduler.is_overtaken(batch)
            self.scheduler.put_back(batch)
            assert self.scheduler.next_batch() == batch
            self.scheduler.put_back(batch)

    @rule()
    def drain(self) -> None:
        drained = self.scheduler.drain()
        assert set(drained) == set(self.waiting)
        assert [s.priority for s in drained] == sorted((s.priority for s in drained), reverse=True)
        self._take(drained)
        assert self.scheduler.next_batch() == []

    def _waiting_of(self, one: list[Sequence]) -> list[Sequence]:
        return [sequence for sequence in one if sequence in self.waiting]

    def _take(self, batch: list[Sequence]) -> None:
        assert len(set(batch)) == len(batch)
        for sequence in batch:
            assert sequence not in self.gone, "served twice, or after it was cancelled"
            self._leaves(sequence)

    def _leaves(self, sequence: Sequence) -> None:
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self.gone.append(sequence)

    @invariant()
    def counters_are_true(self) -> None:
        assert self.scheduler.num_sequences == len(self.waiting)
        assert self.scheduler.num_tokens == sum(sequence.num_tokens for sequence in self.waiting)

    @invariant()
    def queued_means_waiting(self) -> None:
        assert all(sequence.queued for sequence in self.waiting)
        assert not any(sequence.queued for sequence in self.gone)

    def teardown(self) -> None:
        """Whatever still waits is served in the end."""
        for batch in serve_all(self.scheduler):
            self._take(batch)
        assert not self.waiting
        self.counters_are_true()


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase


requests = st.lists(
    st.tuples(
        st.lists(st.integers(1, 40), min_size=1, max_size=8),  # lengths
        st.integers(0, 50).map(lambda milliseconds: milliseconds / 1000),  # arrival
        st.integers(-2, 2),  # priority
    ),
    max_size=10,
)


@given(requests, st.integers(1, 64))
def test_everything_is_served_once_within_the_budget(asked: list[tuple[list[int], float, int]], budget: int) -> None:
    scheduler = Scheduler(budget)
    added = [request(*one) for one in asked]
    for sequences in added:
        scheduler.add(sequences)
    batches = serve_all(scheduler)
    flat = [sequence for batch in batches for sequence in batch]
    assert len(flat) == len(set(flat))
    assert set(flat) == {sequence for sequences in added for sequence in sequences}
    for batch in batches:
        assert len(batch) == 1 or sum(sequence.num_tokens for sequence in batch) <= budget
    for sequences in added:
        places = [flat.index(sequence) for sequence in sequences]
        assert places == sorted(places)
    assert [s.priority for s in flat] == sorted((s.priority for s in flat), reverse=True)


@given(requests, st.integers(1, 64))
def test_no_batch_stops_short_of_its_budget(asked: list[tuple[list[int], float, int]], budget: int) -> None:
    """The sequence that opens a batch did not fit into the one before; or little ended with that, more than an eighth
    full, and whatever was left has more than an eighth to go.
    """
    scheduler = Scheduler(budget)
    for one in asked:
        scheduler.add(request(*one))
    batches = serve_all(scheduler)
    for place, (batch, following) in enumerate(pairwise(batches)):
        tokens = sum(sequence.num_tokens for sequence in batch)
        if tokens + following[0].num_tokens <= budget:
            left: Counter[int] = Counter()
            for sequence in chain.from_iterable(batches[place + 1 :]):
                left[sequence.request] += sequence.num_tokens
            ended = {sequence.request: sequence.num_tokens for sequence in batch if sequence.request not in left}
            assert 0 < sum(ended.values()) <= budget // 8 < tokens
            assert min(left.values()) > budget // 8


@given(requests)
def test_equal_shares(asked: list[tuple[list[int], float, int]]) -> None:
    """Of requests that wait together, whose n-th token comes before whose m-th is decided by n and m alone."""
    scheduler = Scheduler(BUDGET)
    added = [request(lengths) for lengths, _, _ in asked]
    for sequences in added:
        scheduler.add(sequences)
    place = {sequence: i for i, sequence in enumerate(served(scheduler))}
    due = {
        sequence: sum(other.num_tokens for other in sequences[: i + 1]) if i else 0
        for sequences in added
        for i, sequence in enumerate(sequences)
    }
    for number, early in enumerate(added):
        for late in added[number + 1 :]:
            for one in early:
                for other in late:
                    assert (place[one] < place[other]) == (due[one] <= due[other])


def test_a_long_request_ends_although_short_ones_keep_coming() -> None:
    """Short requests alone would fill every batch; yet the long one has its 64th part of the device."""
    scheduler = Scheduler(BUDGET)
    bulk = request([8] * 100)
    scheduler.add(bulk)
    left = set(bulk)
    batches = 0
    while left:
        for _ in range(BUDGET // 8):
            scheduler.add(request([8]))
        left -= set(scheduler.next_batch())
        batches += 1
        assert batches <= 64 * 100 * 8 // BUDGET, f"{len(left)} sequences starve"
    assert scheduler.num_tokens > 0, "the stream was to outlast the long request"


def test_a_long_request_has_all_that_short_ones_leave() -> None:
    scheduler = Scheduler(BUDGET)
    bulk = request([8] * 100)
    scheduler.add(bulk)
    for batches in range(100):
        for _ in range(BUDGET // 8 - 1):
            scheduler.add(request([8]))
        assert set(scheduler.next_batch()) & set(bulk), f"none in batch {batches}"
    assert scheduler.num_sequences == 0


def test_a_short_request_is_next_whatever_waits() -> None:
    """Eight long requests, each long since queued; a short one comes while a batch runs, and is in the one after it."""
    scheduler = Scheduler(BUDGET)
    for _ in range(8):
        scheduler.add(request([16] * 1000))
        scheduler.next_batch()
    for batches in range(400):
        scheduler.next_batch()
        scheduler.add(short := request([3]))
        assert short[0] in scheduler.next_batch(), f"after {batches} batches"


def test_a_short_request_does_not_wait_for_a_batch_full_of_long_ones() -> None:
    scheduler = Scheduler(BUDGET)
    bulk = request([8] * 100)
    scheduler.add(bulk)
    assert scheduler.next_batch() == bulk[:4]
    scheduler.add(short := request([3]))
    assert scheduler.next_batch() == [*short, bulk[4]], "an eighth at least, for the device's sake"
    assert scheduler.next_batch() == bulk[5:9]
    singles = [request([4]) for _ in range(3)]
    for single in singles:
        scheduler.add(single)
    assert scheduler.next_batch() == [*chain(*singles), *bulk[9:11]], "more than an eighth ends: the rest is used"


def test_who_comes_before_a_batch_that_was_formed_ahead_has_a_turn_before_it() -> None:
    """Eight long requests of one age: of two batches with equal turns, the second is formed ahead."""
    scheduler = Scheduler(BUDGET)
    for _ in range(8):
        scheduler.add(request([8] * 20))
    assert len(scheduler.next_batch() + scheduler.next_batch()) == 8, "the first of each, whose turn is now"
    for _ in range(4):
        scheduler.next_batch()
        ahead = scheduler.next_batch()
        scheduler.add(short := request([3]), ahead=True)
        assert scheduler.is_overtaken(ahead)
        scheduler.put_back(ahead)
        assert short[0] in scheduler.next_batch()


def test_what_comes_before_a_batch_that_was_formed_ahead() -> None:
    scheduler = Scheduler(BUDGET)
    bulk = request([8] * 100)
    scheduler.add(bulk)
    first = scheduler.next_batch()
    ahead = scheduler.next_batch()
    assert (first, ahead) == (bulk[:4], bulk[4:8])
    assert not scheduler.is_overtaken(ahead), "what waits comes after it"
    scheduler.add(urgent := request([8], priority=1))
    assert scheduler.is_overtaken(ahead)
    scheduler.put_back(ahead)
    assert scheduler.num_sequences == 100 - 4 + 1
    assert scheduler.next_batch() == [*urgent, *bulk[4:7]]
    assert served(scheduler) == bulk[7:]


def test_a_batch_put_back_gives_no_one_its_turn_twice() -> None:
    """Forming ahead and giving up, again and again, must not move the clock, or newcomers would come last."""
    scheduler = Scheduler(BUDGET)
    bulk = request([8] * 100)
    scheduler.add(bulk)
    scheduler.next_batch()
    for _ in range(50):
        scheduler.put_back(scheduler.next_batch())
    scheduler.cancel(bulk[5:6])
    scheduler.add(short := request([8]))
    assert scheduler.next_batch() == [*short, bulk[4], *bulk[6:8]]


def test_higher_priority_first_whatever_its_age() -> None:
    scheduler = Scheduler(BUDGET)
    old, urgent, idle = request([8], 0.0), request([8], 100.0, priority=1), request([8], 0.0, priority=-1)
    for sequences in (idle, old, urgent):
        scheduler.add(sequences)
    assert served(scheduler) == urgent + old + idle


def test_single_sequences_are_served_as_they_come_whatever_their_length() -> None:
    scheduler = Scheduler(BUDGET)
    added = [request([length])[0] for length in (30, 1, 7, 32, 2)]
    for sequence in added:
        scheduler.add([sequence])
    assert served(scheduler) == added


def test_equal_requests_are_served_as_they_came() -> None:
    scheduler = Scheduler(BUDGET)
    added = [request([5], arrival=1.0)[0] for _ in range(20)]
    for sequence in added:
        scheduler.add([sequence])
    assert served(scheduler) == added


def test_a_sequence_longer_than_the_budget_runs_alone() -> None:
    scheduler = Scheduler(BUDGET)
    sequences = request([8, 100, 8])
    scheduler.add(sequences)
    assert serve_all(scheduler) == [[sequences[0]], [sequences[1]], [sequences[2]]]


def test_nothing_waits() -> None:
    scheduler = Scheduler(BUDGET)
    scheduler.add([])
    assert scheduler.next_batch() == []
    assert scheduler.drain() == []
    assert (scheduler.num_tokens, scheduler.num_sequences) == (0, 0)


def test_cancelled_stops_counting_at_once_and_is_never_served() -> None:
    scheduler = Scheduler(BUDGET)
    sequences = request([8, 9, 10])
    scheduler.add(sequences)
    scheduler.cancel(sequences[1:2])
    assert (scheduler.num_tokens, scheduler.num_sequences) == (18, 2)
    scheduler.cancel(sequences[1:2])
    assert (scheduler.num_tokens, scheduler.num_sequences) == (18, 2)
    assert served(scheduler) == [sequences[0], sequences[2]]
    assert (scheduler.num_tokens, scheduler.num_sequences) == (0, 0)


def test_cancelled_sequences_take_no_room_in_a_batch() -> None:
    scheduler = Scheduler(BUDGET)
    sequences = request([16, 100, 16])
    scheduler.add(sequences)
    scheduler.cancel(sequences[1:2])
    assert scheduler.next_batch() == [sequences[0], sequences[2]]


def test_cancelled_after_it_was_served() -> None:
    scheduler = Scheduler(BUDGET)
    sequences = request([20, 20])
    scheduler.add(sequences)
    assert scheduler.next_batch() == sequences[:1]
    scheduler.cancel(sequences)
    assert (scheduler.num_tokens, scheduler.num_sequences) == (0, 0)
    assert sequences[0].cancelled, "the runner may still skip it"
    assert scheduler.next_batch() == []


def test_drain_gives_what_waits_in_order_and_empties_the_queue() -> None:
    scheduler = Scheduler(BUDGET)
    plain, urgent = request([8, 8, 8]), request([8], priority=3)
    scheduler.add(plain)
    scheduler.add(urgent)
    scheduler.cancel(plain[1:2])
    assert scheduler.drain() == [urgent[0], plain[0], plain[2]]
    assert (scheduler.num_tokens, scheduler.num_sequences) == (0, 0)
    assert scheduler.next_batch() == []

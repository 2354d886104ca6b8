"""The engine under load, cancellation, overload, failure and shutdown: every sequence ends in an answer or an error."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from assay.config import EngineConfig
from assay.engine import engine as engine_module
from assay.engine.engine import Engine
from assay.engine.runner import Batch, ModelRunner, form
from assay.errors import (
    AssayError,
    ConfigError,
    ContextLengthError,
    InternalError,
    QueueFullError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from assay.metrics import Metrics
from assay.model.room import Room
from assay.sequence import Options, Prediction, Sequence, TextPrompt, TokenPrompt
from tests.tiny import save_bert, word_embeddings

MAX_LEN = 32
PATIENCE = 5  # seconds after which a wait is a hang; nothing here takes one


class Gate:
    """Stands before the runner and lets batches through when told to. Records what the device was given."""

    def __init__(self, engine: Engine) -> None:
        self.batches: list[Batch] = []
        self.error: BaseException | None = None
        self._let = threading.Semaphore(0)
        self._open = False
        self._run = engine._worker.runner.run
        engine._worker.runner.run = self._held  # type: ignore[method-assign]

    def _held(self, batch: Batch) -> list[Prediction | AssayError]:
        self.batches.append(batch)
        if not self._open:
            assert self._let.acquire(timeout=PATIENCE)
        if self.error is not None:
            self._open = True  # the worker tries once more whether the device works
            raise self.error
        return self._run(batch)

    def let(self, count: int = 1) -> None:
        self._let.release(count)

    def open(self) -> None:
        self._open = True
        self._let.release(1000)

    def seen(self) -> list[list[int]]:
        """First token id of every sequence of every batch, each batch's sorted."""
        return [sorted(sequence.token_ids[0] for sequence in batch.sequences) for batch in self.batches]


def ids(first: int, length: int) -> TokenPrompt:
    return TokenPrompt([first, *([20] * (length - 1))])


def several(first: int, length: int, count: int) -> list[TokenPrompt]:
    """Prompts of one first id, no two the same: of equal ones in a request, one is queued."""
    return [TokenPrompt([first, 21 + i, *([20] * (length - 2))]) for i in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


async def outcome(call: Any) -> Any:
    """A call's result, or the error it ended with; a hang is a failure."""
    try:
        return await asyncio.wait_for(asyncio.shield(call), PATIENCE)
    except AssayError as error:
        return error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_bert(folder, max_position_embeddings=MAX_LEN)
    return folder


class Bench:
    """An engine, its gate, and the calls in flight."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self.gate = Gate(engine)
        self.calls: list[asyncio.Task[list[Prediction]]] = []

    @property
    def queued(self) -> int:
        return self.engine._scheduler.num_tokens

    @property
    def prefetched(self) -> Batch | None:
        return self.engine._worker.prefetched

    def call(self, *prompts: TokenPrompt | TextPrompt, **options: Any) -> "asyncio.Task[list[Prediction]]":
        task = asyncio.create_task(self.engine.classify(list(prompts), Options(**options)))
        self.calls.append(task)
        return task

    async def busy(self) -> "asyncio.Task[list[Prediction]]":
        """A one-token request, first id 5, that sits on the device."""
        task = self.call(ids(5, 1))
        await until(lambda: len(self.gate.batches) == 1)
        return task

    async def settle(self) -> None:
        """Long enough for anything that is going to happen on its own to happen."""
        for _ in range(5):
            await asyncio.sleep(0.005)


@asynccontextmanager
async def benched(folder: Path, **settings: Any) -> AsyncIterator[Bench]:
    """An engine with small limits, or with these, and its gate; closed at the end, whatever is still in flight."""
    metrics, limits = Metrics(), {"max_batch_tokens": 20, "max_queue_tokens": 200}
    engine = Engine.load(EngineConfig(str(folder), name="m", **limits | settings), metrics)
    engine.start()
    bench = Bench(engine, metrics)
    yield bench
    bench.gate.open()
    await asyncio.to_thread(engine.close)
    for call in bench.calls:
        call.cancel()
    await asyncio.gather(*bench.calls, return_exceptions=True)


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with benched(folder) as bench:
        yield bench


# Answers.


def alone(engine: Engine, token_ids: list[int]) -> Prediction:
    runner = ModelRunner(engine.model)
    answer = runner.run(form([Sequence(token_ids, activation=engine.model.activation)]))[0]
    assert isinstance(answer, Prediction)
    return answer


async def test_many_concurrent_requests_get_their_own_answers_in_order(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), max_batch_tokens=64))
    engine.start()
    rng = random.Random(0)
    requests = [
        [[rng.randrange(5, 100) for _ in range(rng.randint(1, MAX_LEN))] for _ in range(rng.randint(1, 9))]
        for _ in range(40)
    ]

    async def one(token_lists: list[list[int]]) -> list[Prediction]:
        await asyncio.sleep(rng.random() * 0.05)
        return await engine.classify([TokenPrompt(token_ids) for token_ids in token_lists])

    answers = await asyncio.gather(*map(one, requests))
    for token_lists, predictions in zip(requests, answers, strict=True):
        for token_ids, prediction in zip(token_lists, predictions, strict=True):
            expected = alone(engine, token_ids)
            assert prediction.num_tokens == len(token_ids)
            assert prediction.label == expected.label
            assert prediction.logits == pytest.approx(expected.logits, abs=2e-5)
            assert prediction.probs == pytest.approx(expected.probs, abs=2e-5)
    engine.close()


async def test_no_prompts_no_predictions(bench: Bench) -> None:
    assert await bench.engine.classify([]) == []


async def test_a_sequence_longer_than_the_budget_runs_alone(bench: Bench) -> None:
    await bench.busy()
    call = bench.call(ids(6, 1), ids(7, MAX_LEN), ids(8, 1))
    bench.gate.open()
    assert [prediction.num_tokens for prediction in await call] == [1, MAX_LEN, 1]
    assert [7] in bench.gate.seen()
    assert all(batch.packed.num_tokens <= 20 or len(batch.sequences) == 1 for batch in bench.gate.batches)


async def test_texts_pairs_and_ids_in_one_request(bench: Bench) -> None:
    bench.gate.open()
    predictions = await bench.call(TextPrompt("the coffee"), ids(5, 3), TextPrompt("the", "coffee"))
    assert [prediction.num_tokens for prediction in predictions] == [4, 3, 5]
    assert all(prediction.timings.tokenize > 0 for prediction in predictions)


async def test_options_activation_wins_over_the_models(bench: Bench) -> None:
    bench.gate.open()
    (raw,) = await bench.call(ids(5, 3), activation="none")
    (soft,) = await bench.call(ids(5, 3))
    assert raw.probs == raw.logits
    assert sum(soft.probs) == pytest.approx(1)


async def test_priority_comes_first(bench: Bench) -> None:
    await bench.busy()
    calls = [bench.call(ids(first, 11)) for first in (6, 7)]
    await until(lambda: bench.prefetched is not None)
    calls += [bench.call(ids(8, 11)), bench.call(ids(9, 11), priority=5), bench.call(ids(10, 11), priority=-1)]
    await until(lambda: bench.queued == 44)
    bench.gate.open()
    await asyncio.gather(*calls)
    assert bench.gate.seen() == [[5], [9], [6], [7], [8], [10]], "even before a batch that was formed ahead"


async def test_one_broken_request_fails_alone(bench: Bench) -> None:
    await bench.busy()
    good = bench.call(ids(6, 3))
    bad = bench.call(ids(7, 3), TokenPrompt([10**6]))
    too_long = bench.call(TokenPrompt([7] * (MAX_LEN + 1)))
    surrogate = bench.call(TextPrompt("\ud800"))
    assert isinstance(await outcome(bad), RequestError)
    assert isinstance(await outcome(too_long), ContextLengthError)
    assert isinstance(await outcome(surrogate), RequestError)
    bench.gate.open()
    assert len(await good) == 1
    assert bench.gate.seen() == [[5], [6]]
    assert bench.engine.available
    assert bench.engine._admission.tokenizing == 0


async def test_a_bug_in_the_tokenizer_fails_only_its_own_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = bench.engine._encoder.encode

    def flawed(prompts: Any, *args: Any) -> list[Sequence]:
        if prompts[0].token_ids[0] == 13:
            raise ZeroDivisionError
        return encode(prompts, *args)

    monkeypatch.setattr(bench.engine._encoder, "encode", flawed)
    bench.gate.open()
    good, bad = bench.call(ids(6, 3)), bench.call(ids(13, 3))
    with pytest.raises(ZeroDivisionError):
        await bad
    assert len(await good) == 1
    assert bench.engine._admission.tokenizing == 0


async def test_not_a_number_fails_its_request_and_no_other(tmp_path: Path) -> None:
    save_bert(tmp_path)
    engine = Engine.load(EngineConfig(str(tmp_path)))
    word_embeddings(engine.model)[50] = float("nan")
    engine.start()
    good, bad = await asyncio.gather(
        engine.classify([TokenPrompt([6])]),
        engine.classify([TokenPrompt([6]), TokenPrompt([50]), TokenPrompt([50, 6])]),
        return_exceptions=True,
    )
    assert isinstance(good, list)
    assert isinstance(bad, InternalError)
    assert engine.available
    assert not engine._waiters
    engine.close()


async def test_a_pair_for_a_model_of_one_token_type_does_not_end_the_engine(tmp_path: Path) -> None:
    """The tokenizer gives the second text type 1, for which the embedding has no row."""
    save_bert(tmp_path, type_vocab_size=1)
    engine = Engine.load(EngineConfig(str(tmp_path)))
    engine.start()
    await outcome(asyncio.ensure_future(engine.classify([TextPrompt("the", "coffee")])))
    assert engine.failure is None
    assert len(await engine.classify([TextPrompt("the coffee")])) == 1
    engine.close()


# Prefetch.


async def test_exactly_one_full_batch_is_prefetched(bench: Bench) -> None:
    await bench.busy()
    calls = [bench.call(ids(6, 15))]
    await until(lambda: bench.queued == 15)
    await bench.settle()
    assert bench.prefetched is None, "a partial batch must stay open"
    calls.append(bench.call(ids(7, 4)))
    await until(lambda: bench.queued == 19)
    await bench.settle()
    assert bench.prefetched is None
    calls.append(bench.call(ids(8, 1)))
    await until(lambda: bench.prefetched is not None)
    assert bench.queued == 0
    first = bench.prefetched

    calls += [bench.call(*[ids(first_id, 10) for first_id in (9, 10, 11, 12, 13)])]
    await until(lambda: bench.queued == 50)
    await bench.settle()
    assert bench.prefetched is first, "no more than one is formed ahead"
    assert bench.queued == 50

    bench.gate.let()
    await until(lambda: len(bench.gate.batches) == 2 and bench.prefetched is not None)
    assert bench.gate.batches[1] is first
    assert bench.queued == 30
    bench.gate.open()
    await asyncio.gather(*calls)
    assert bench.gate.seen() == [[5], [6, 7, 8], [9, 10], [11, 12], [13]]


async def test_no_batch_is_cut_while_one_is_formed_ahead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be put back any more, and whoever then gave up got a KeyError."""
    loops_thread = threading.get_ident()

    def slow_form(sequences: list[Sequence]) -> Batch:
        if threading.get_ident() == loops_thread:
            bench.gate.let()
            time.sleep(0.1)  # the device is done, and asks for more
        return form(sequences)

    monkeypatch.setattr("assay.engine.worker.form", slow_form)
    await bench.busy()
    call = bench.call(ids(6, 20), ids(7, 20))
    await until(lambda: len(bench.gate.batches) >= 2)
    bench.gate.open()
    await call
    assert bench.gate.seen() == [[5], [6], [7]]


async def test_who_comes_while_a_batch_is_formed_ahead_is_in_the_next(bench: Bench) -> None:
    """Although the turns of that batch are past, by the clock that forming it moved on."""
    await bench.busy()
    calls = [bench.call(*several(first, 10, 3)) for first in (6, 7, 8, 9)]
    await until(lambda: bench.prefetched is not None)
    for _ in range(3):
        running = len(bench.gate.batches)
        bench.gate.let()
        await until(lambda running=running: len(bench.gate.batches) > running and bench.prefetched is not None)
    calls.append(bench.call(ids(10, 3)))
    await bench.settle()
    bench.gate.open()
    await asyncio.gather(*calls)
    assert bench.gate.seen()[:4] == [[5], [6, 7], [8, 9], [6, 7]]
    assert 10 in bench.gate.seen()[4]


async def test_an_idle_device_takes_what_is_there(bench: Bench) -> None:
    await bench.busy()
    assert bench.gate.seen() == [[5]]
    late = bench.call(ids(6, 2))
    await until(lambda: bench.queued == 2)
    later = bench.call(ids(7, 2))
    await until(lambda: bench.queued == 4)
    bench.gate.let()
    await until(lambda: len(bench.gate.batches) == 2)
    bench.gate.open()
    await asyncio.gather(late, later)
    assert bench.gate.seen() == [[5], [6, 7]], "the partial batch was open to the newcomer"


# Cancellation.


async def test_cancelled_requests_are_skipped_and_stop_counting(bench: Bench) -> None:
    await bench.busy()
    gone = bench.call(ids(6, 6), ids(7, 6), ids(8, 6))
    await until(lambda: bench.queued == 18)
    gone.cancel()
    await until(gone.done)
    assert bench.queued == 0
    assert bench.engine._scheduler.num_sequences == 0
    kept = bench.call(ids(9, 6))
    bench.gate.open()
    assert len(await kept) == 1
    assert bench.gate.seen() == [[5], [9]]
    assert not bench.engine._waiters


async def test_a_caller_that_leaves_while_its_batch_runs(bench: Bench) -> None:
    gone = await bench.busy()
    gone.cancel()
    await until(gone.done)
    bench.gate.open()
    assert len(await bench.call(ids(6, 6))) == 1
    assert not bench.engine._waiters


async def test_a_caller_that_leaves_while_its_text_is_tokenized(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    encode = bench.engine._encoder.encode

    def slow(*args: Any) -> list[Sequence]:
        hold.wait(PATIENCE)
        return encode(*args)

    monkeypatch.setattr(bench.engine._encoder, "encode", slow)
    gone = bench.call(ids(6, 6))
    await until(lambda: bench.engine._admission.tokenizing > 0)
    gone.cancel()
    await until(gone.done)
    hold.set()
    await bench.settle()
    assert (bench.engine._admission.tokenizing, bench.queued, bench.gate.batches) == (0, 0, [])


async def test_the_room_of_cancelled_requests_is_free_again(bench: Bench) -> None:
    await bench.busy()
    gone = bench.call(*several(6, 20, 10))
    await until(lambda: bench.queued >= 180)  # one batch is prefetched
    assert isinstance(await outcome(bench.call(*several(7, 20, 2))), QueueFullError)
    gone.cancel()
    await until(gone.done)
    again = bench.call(*several(8, 20, 9))
    await until(lambda: bench.queued == 180)
    bench.gate.open()
    assert len(await again) == 9


# Admission.


async def test_a_full_queue_refuses_and_recovers(bench: Bench) -> None:
    await bench.busy()
    waiting = bench.call(*several(6, 19, 11))  # 209 tokens, more than the queue
    assert isinstance(await outcome(waiting), TooLargeError)
    waiting = bench.call(*several(6, 19, 10))
    await until(lambda: bench.queued >= 171)
    refused = await outcome(bench.call(ids(7, 30)))
    assert isinstance(refused, QueueFullError)
    assert refused.status == 429
    assert refused.retry_after >= 1
    assert bench.engine._admission.tokenizing == 0
    bench.gate.open()
    assert len(await waiting) == 10
    assert len(await bench.call(ids(7, 30))) == 1


async def test_a_request_larger_than_the_queue_is_told_to_split(bench: Bench) -> None:
    bench.gate.open()
    error = await outcome(bench.call(*several(6, 25, 9)))
    assert isinstance(error, TooLargeError)
    assert error.status == 413
    assert "split" in error.message
    assert bench.gate.batches == []


async def test_the_queue_never_holds_more_than_its_limit(bench: Bench) -> None:
    """Many requests at once, all admitted by the estimate before any is counted exactly."""
    await bench.busy()
    calls = [bench.call(TextPrompt("a " * 14)) for _ in range(40)]  # 16 tokens each, estimated at 8
    most = 0
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        most = max(most, bench.queued)
        await asyncio.sleep(0.001)
    assert 100 < most <= 200
    bench.gate.open()
    results = [await outcome(call) for call in calls]
    refused = sum(isinstance(result, QueueFullError) for result in results)
    assert 0 < refused < 40
    assert all(isinstance(result, list | QueueFullError) for result in results)


# Drain, death and close.


async def test_drain_answers_the_accepted_and_refuses_the_new(bench: Bench) -> None:
    running = await bench.busy()
    queued = bench.call(ids(6, 15))
    await until(lambda: bench.queued == 15)
    drained = asyncio.create_task(bench.engine.drain())
    await bench.settle()
    assert not drained.done()
    assert not bench.engine.available
    assert isinstance(await outcome(bench.call(ids(7, 1))), UnavailableError)
    bench.gate.open()
    await asyncio.wait_for(drained, PATIENCE)
    await bench.settle()
    assert len(running.result()) == len(queued.result()) == 1


async def test_drain_waits_for_what_is_being_tokenized(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    encode = bench.engine._encoder.encode
    monkeypatch.setattr(bench.engine._encoder, "encode", lambda *args: (hold.wait(PATIENCE), encode(*args))[1])
    bench.gate.open()
    call = bench.call(ids(6, 3))
    await until(lambda: bench.engine._admission.tokenizing > 0)
    drained = asyncio.create_task(bench.engine.drain())
    await bench.settle()
    assert not drained.done()
    hold.set()
    await asyncio.wait_for(drained, PATIENCE)
    assert len(await call) == 1


async def test_drain_of_an_idle_engine_is_at_once(bench: Bench) -> None:
    await asyncio.wait_for(bench.engine.drain(), PATIENCE)
    assert isinstance(await outcome(bench.call(ids(7, 1))), UnavailableError)


@pytest.mark.parametrize("error", [RuntimeError("gone"), SystemExit(1)], ids=repr)
async def test_a_runner_that_dies_tells_every_waiter(
    bench: Bench, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    running = await bench.busy()
    prefetched = [bench.call(ids(6, 10)), bench.call(ids(7, 10))]
    await until(lambda: bench.prefetched is not None)
    queued = [bench.call(ids(8, 10)), bench.call(ids(9, 5), ids(10, 5))]
    await until(lambda: bench.queued == 20)
    bench.gate.error = error
    bench.gate.let()
    for call in (running, *prefetched, *queued):
        assert isinstance(await outcome(call), InternalError)
    assert bench.engine.failure is error
    assert not bench.engine.available
    assert isinstance(await outcome(bench.call(ids(11, 1))), UnavailableError)
    assert not bench.engine._waiters
    assert bench.queued == 0
    assert len(bench.gate.batches) <= 2
    assert "runner" in caplog.text
    await asyncio.wait_for(bench.engine.drain(), PATIENCE)


async def test_death_while_a_text_is_tokenized(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await bench.busy()
    hold = threading.Event()
    encode = bench.engine._encoder.encode
    monkeypatch.setattr(bench.engine._encoder, "encode", lambda *args: (hold.wait(PATIENCE), encode(*args))[1])
    late = bench.call(ids(6, 3))
    await until(lambda: bench.engine._admission.tokenizing > 0)
    bench.gate.error = RuntimeError("gone")
    bench.gate.let()
    assert isinstance(await outcome(running), InternalError)
    hold.set()
    assert isinstance(await outcome(late), UnavailableError)


async def test_a_batch_that_cannot_be_formed_ahead_tells_its_waiters(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefetching happens on the event loop, in whichever call is at hand; its failure must not lose the others."""
    await bench.busy()
    waiting = bench.call(ids(6, 10))
    await until(lambda: bench.queued == 10)

    def fail(sequences: Iterable[Sequence]) -> Batch:
        raise MemoryError

    monkeypatch.setattr("assay.engine.worker.form", fail)
    trigger = bench.call(ids(7, 10))
    await bench.settle()
    bench.gate.let()
    for call in (waiting, trigger):
        done, _ = await asyncio.wait({call}, timeout=2)
        assert done, "a waiter was forgotten"
        assert call.exception() is not None


async def test_close_tells_whoever_waits(bench: Bench) -> None:
    running = await bench.busy()
    queued = bench.call(ids(6, 15))
    await until(lambda: bench.queued == 15)
    closing = asyncio.create_task(asyncio.to_thread(bench.engine.close))
    await bench.settle()
    bench.gate.open()
    await asyncio.wait_for(closing, PATIENCE)
    assert isinstance(await outcome(queued), UnavailableError)
    result = await outcome(running)
    assert isinstance(result, list | UnavailableError)
    assert isinstance(await outcome(bench.call(ids(7, 1))), UnavailableError)


@pytest.mark.parametrize("waiting", [1, 5])
async def test_close_while_texts_are_tokenized(bench: Bench, monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    """With two threads, some of five requests have not begun to be tokenized; none may wait for ever."""
    hold = threading.Event()
    encode = bench.engine._encoder.encode
    monkeypatch.setattr(bench.engine._encoder, "encode", lambda *args: (hold.wait(PATIENCE), encode(*args))[1])
    bench.gate.open()
    calls = [bench.call(ids(6, 3)) for _ in range(waiting)]
    await until(lambda: bench.engine._admission.tokenizing == 3 * waiting)
    closing = asyncio.create_task(asyncio.to_thread(bench.engine.close))
    await bench.settle()
    hold.set()
    await asyncio.wait_for(closing, PATIENCE)
    await asyncio.wait(calls, timeout=2)
    assert all(call.done() for call in calls), "a caller waits for ever"
    assert not any(call.cancelled() for call in calls), "a caller that nobody cancelled was cancelled"
    assert all(isinstance(call.exception(), UnavailableError) for call in calls)


@pytest.mark.parametrize("seconds", [0, 1000])
async def test_weights_are_settled_after_a_while_unless_it_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    settled = threading.Event()
    monkeypatch.setattr(Room, "settle", lambda _: settled.set())
    monkeypatch.setattr(engine_module, "_SETTLING_SECONDS", seconds)
    engine = Engine.load(EngineConfig(str(folder)))
    assert not settled.is_set()
    engine.start()
    if not seconds:
        assert await asyncio.to_thread(settled.wait, 10)
    await asyncio.to_thread(engine.close)
    assert settled.is_set() == (seconds == 0)


async def test_no_thread_outlives_close(folder: Path) -> None:
    before = set(threading.enumerate())
    engine = Engine.load(EngineConfig(str(folder)))
    engine.start()
    await engine.classify([TextPrompt("the coffee")])
    assert {thread.name for thread in threading.enumerate()} >= {"assay-runner"}
    engine.close()
    engine.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("assay")]


async def test_close_of_an_engine_that_never_started(folder: Path) -> None:
    Engine.load(EngineConfig(str(folder))).close()


# Loading.


def test_max_model_len_is_the_smallest_limit(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder)))
    assert engine.max_model_len == MAX_LEN
    engine = Engine.load(EngineConfig(str(folder), max_model_len=7))
    assert engine.max_model_len == 7
    with pytest.raises(ConfigError, match="33"):
        Engine.load(EngineConfig(str(folder), max_model_len=MAX_LEN + 1))


def test_configured_activation_wins_over_the_checkpoints(folder: Path) -> None:
    assert Engine.load(EngineConfig(str(folder))).model.activation == "softmax"
    assert Engine.load(EngineConfig(str(folder), activation="none")).model.activation == "none"


async def test_queue_gauges_follow_the_queue(bench: Bench) -> None:
    await bench.busy()
    call = bench.call(ids(6, 7), ids(7, 8))
    await until(lambda: bench.queued == 15)
    text = bench.metrics.render().decode()
    assert 'assay_queue_tokens{model="m"} 15.0' in text
    assert 'assay_queue_sequences{model="m"} 2.0' in text
    bench.gate.open()
    await call
    await until(lambda: 'assay_sequences_total{model="m"} 3.0' in bench.metrics.render().decode())
    assert 'assay_tokens_total{model="m"} 16.0' in bench.metrics.render().decode()


async def test_the_operators_truncation_holds_where_the_request_says_nothing(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), truncate_prompt_tokens=4))
    engine.start()
    long = [TokenPrompt(list(range(5, 25)))]
    assert (await engine.classify(long))[0].num_tokens == 4
    assert (await engine.classify(long, Options(truncate_prompt_tokens=7)))[0].num_tokens == 7
    engine.close()


async def test_a_request_for_a_softmax_over_one_label_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, num_labels=1)
    engine = Engine.load(EngineConfig(str(tmp_path)))
    engine.start()
    with pytest.raises(RequestError, match="one label"):
        await engine.classify([TokenPrompt([5])], Options(activation="softmax"))
    assert (await engine.classify([TokenPrompt([5])]))[0].probs != [1.0]
    engine.close()

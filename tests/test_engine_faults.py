"""What goes wrong inside the engine, on purpose: each fault has its outcome, and only those at fault hear of it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers

from assay.config import EngineConfig
from assay.engine.admission import Admission
from assay.engine.engine import Engine
from assay.engine.runner import Batch
from assay.engine.threads import Threads
from assay.errors import (
    AssayError,
    DeadlineError,
    InternalError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from assay.metrics import Metrics
from assay.sequence import Options, Prediction, Sequence, TextPrompt
from tests.test_engine import PATIENCE, Bench, ids, outcome, several, until
from tests.tiny import save_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_bert(folder, max_position_embeddings=32)
    return folder


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Callable[..., Engine]]:
    """Engines with settings of a test's own, closed at its end."""
    engines: list[Engine] = []

    def start(**settings: Any) -> Engine:
        engine = Engine.load(EngineConfig(str(folder), **{"max_batch_tokens": 20, "max_queue_tokens": 200} | settings))
        engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await asyncio.to_thread(engine.close)
    await asyncio.sleep(0)


def failing_for(engine: Engine, bad_ids: set[int], error: Exception) -> list[list[int]]:
    """The device refuses every batch that has one of these first ids. Returns the batches that it was given."""
    run = engine._worker.runner.run
    seen: list[list[int]] = []

    def flawed(batch: Batch) -> list[Prediction | AssayError]:
        firsts = [sequence.token_ids[0] for sequence in batch.sequences]
        seen.append(firsts)
        if bad_ids & set(firsts):
            raise error
        return run(batch)

    engine._worker.runner.run = flawed  # type: ignore[method-assign]
    return seen


# --- a batch that fails ---


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("some bug"), "failed on this input"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
    ],
    ids=["bug", "memory", "gpu memory", "cpu memory"],
)
async def test_one_bad_sequence_fails_alone(make: Callable[..., Engine], error: Exception, message: str) -> None:
    engine = make(max_batch_tokens=100)
    alone = await engine.classify([ids(first, 5) for first in range(6, 16)])
    seen = failing_for(engine, {9}, error)
    calls = [asyncio.create_task(engine.classify([ids(first, 5)])) for first in range(6, 16)]
    results = [await outcome(call) for call in calls]
    for first, expected, result in zip(range(6, 16), alone, results, strict=True):
        if first == 9:
            assert isinstance(result, InternalError)
            assert message in result.message
        else:
            assert result[0].logits == pytest.approx(expected.logits, abs=1e-5)
    assert any(len(batch) > 1 and 9 in batch for batch in seen), "it was in a batch with others"
    assert engine.failure is None
    assert engine.available
    assert (await engine.classify([ids(7, 5)]))[0].label == alone[1].label


async def test_a_bad_sequence_fails_its_own_request_whole(make: Callable[..., Engine]) -> None:
    engine = make(max_batch_tokens=100)
    failing_for(engine, {9}, ValueError("bug"))
    assert isinstance(await outcome(asyncio.create_task(engine.classify([ids(8, 5), ids(9, 5)]))), InternalError)
    assert not engine._waiters


async def test_a_batch_too_large_for_memory_is_computed_in_parts(make: Callable[..., Engine]) -> None:
    engine = make(max_batch_tokens=100)
    expected = await engine.classify([ids(first, 5) for first in range(6, 16)])
    run = engine._worker.runner.run

    def small_device(batch: Batch) -> list[Prediction | AssayError]:
        if batch.packed.num_tokens > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(batch)

    engine._worker.runner.run = small_device  # type: ignore[method-assign]
    results = await engine.classify([ids(first, 5) for first in range(6, 16)])
    for result, one in zip(results, expected, strict=True):
        assert result.logits == pytest.approx(one.logits, abs=1e-5)


async def test_the_log_has_no_words_of_the_caller(
    make: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make()
    failing_for(engine, {9}, ValueError("a caller's secret"))
    await outcome(asyncio.create_task(engine.classify([ids(9, 5)])))
    assert "ValueError" in caplog.text
    assert "flawed" in caplog.text, "where it happened"
    assert "secret" not in caplog.text


async def test_not_a_number_is_one_sequences_error(make: Callable[..., Engine]) -> None:
    engine = make(max_batch_tokens=100)
    forward = engine.model.module.forward

    def poisoned(batch: Any) -> torch.Tensor:
        logits: torch.Tensor = forward(batch).clone()
        logits[(batch.input_ids[batch.cu_seqlens[:-1].long()] == 9).nonzero()] = torch.nan
        return logits

    engine.model.module.forward = poisoned  # type: ignore[method-assign]
    calls = [asyncio.create_task(engine.classify([ids(first, 5)])) for first in (8, 9, 10)]
    first, bad, last = [await outcome(call) for call in calls]
    assert isinstance(bad, InternalError)
    assert "not finite" in bad.message
    assert len(first) == len(last) == 1


# --- deadlines ---


async def test_past_its_deadline_a_request_is_not_computed(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), max_batch_tokens=20, max_queue_tokens=200))
    engine.start()
    bench = Bench(engine, Metrics())
    await bench.busy()
    late = asyncio.create_task(engine.classify([ids(6, 5)], deadline=time.monotonic() + 0.05))
    fine = bench.call(ids(7, 5))
    error = await outcome(late)
    assert isinstance(error, DeadlineError)
    assert error.status == 504
    assert engine._scheduler.num_sequences == 1, "it has left the queue"
    bench.gate.open()
    assert len(await fine) == 1
    assert [6] not in bench.gate.seen()
    await asyncio.to_thread(engine.close)


async def test_a_prefetched_batch_is_formed_anew_without_the_late(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), max_batch_tokens=20, max_queue_tokens=200))
    engine.start()
    bench = Bench(engine, Metrics())
    await bench.busy()
    late = asyncio.create_task(engine.classify([ids(6, 10)], deadline=time.monotonic() + 0.1))
    fine = bench.call(ids(7, 10))
    await until(lambda: bench.prefetched is not None)
    assert isinstance(await outcome(late), DeadlineError)
    bench.gate.open()
    assert len(await fine) == 1
    assert bench.gate.seen() == [[5], [7]]
    await asyncio.to_thread(engine.close)


async def test_a_deadline_that_has_passed_already(make: Callable[..., Engine]) -> None:
    engine = make()
    assert isinstance(await outcome(engine.classify([ids(6, 5)], deadline=time.monotonic() - 1)), DeadlineError)
    assert engine._admission.tokenizing == 0
    assert len(await engine.classify([ids(6, 5)], deadline=time.monotonic() + PATIENCE)) == 1


async def test_a_wall_clock_that_jumps_changes_nothing(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    jumps = iter(range(0, 10**12, 10**9))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    (prediction,) = await engine.classify([TextPrompt("the coffee")], deadline=time.monotonic() + PATIENCE)
    assert 0 <= prediction.timings.queue < PATIENCE
    assert 0 <= prediction.timings.inference < PATIENCE


# --- a full queue ---


async def held(engine: Engine) -> Bench:
    bench = Bench(engine, Metrics())
    await bench.busy()
    bench.call(*several(6, 20, 10))
    await until(lambda: bench.queued >= 180)
    return bench


async def test_503_where_the_operator_wants_it(make: Callable[..., Engine]) -> None:
    bench = await held(make(when_full="503"))
    error = await outcome(bench.call(*several(7, 20, 2)))
    assert isinstance(error, OverloadedError)
    assert (error.status, error.retry_after) == (503, 1)
    bench.gate.open()


async def test_waiting_in_line_loses_nobody_and_keeps_the_order(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await held(make(when_full="wait", tokenizer_threads=1))  # of two, the second may be done first
    calls = [bench.call(*several(7 + i, 20, 4)) for i in range(6)]
    await until(lambda: bench.engine._admission.waiting == 6)
    assert bench.queued <= 200
    entered: list[int] = []
    add = bench.engine._scheduler.add

    def witnessed(sequences: Iterable[Sequence], ahead: bool = False) -> None:
        sequences = list(sequences)
        entered.append(sequences[0].token_ids[0])
        add(sequences, ahead)

    monkeypatch.setattr(bench.engine._scheduler, "add", witnessed)
    bench.gate.open()
    results = [await outcome(call) for call in calls]
    assert [len(result) for result in results] == [4] * 6
    assert entered == [7, 8, 9, 10, 11, 12]
    assert bench.engine._admission.tokenizing == bench.engine._admission.waiting == 0


async def test_who_was_let_in_before_stands_ahead_of_the_line_in_order() -> None:
    """Between being tokenized and being queued, the room may go to others; who comes back first is next."""
    queued = 10
    admission = Admission(10, "wait", lambda: queued)
    let_in: list[str] = []

    async def stand(name: str, at_front: bool) -> None:
        await admission.enter(4, at_front)
        let_in.append(name)

    names = {"new": False, "first": True, "second": True, "third": True, "newer": False}
    tasks = [asyncio.create_task(stand(name, at_front)) for name, at_front in names.items()]
    await until(lambda: admission.waiting == 5)
    queued = -10
    admission.wake()
    await asyncio.gather(*tasks)
    assert let_in == ["first", "second", "third", "new", "newer"]


async def test_who_leaves_the_line_makes_room(make: Callable[..., Engine]) -> None:
    bench = await held(make(when_full="wait"))
    large = bench.call(*several(7, 20, 9))
    small = bench.call(ids(8, 5))
    await until(lambda: bench.engine._admission.waiting == 2)
    large.cancel()
    await until(large.done)
    await until(lambda: bench.engine._admission.waiting == 0)
    bench.gate.open()
    assert len(await small) == 1


async def test_in_line_a_deadline_holds(make: Callable[..., Engine]) -> None:
    bench = await held(make(when_full="wait"))
    late = asyncio.create_task(bench.engine.classify(several(7, 20, 5), deadline=time.monotonic() + 0.05))
    assert isinstance(await outcome(late), DeadlineError)
    assert bench.engine._admission.waiting == 0
    assert isinstance(await outcome(bench.call(*several(7, 20, 11))), TooLargeError)
    bench.gate.open()


async def test_close_tells_those_in_line(make: Callable[..., Engine]) -> None:
    bench = await held(make(when_full="wait"))
    waiting = bench.call(*several(7, 20, 5))
    await until(lambda: bench.engine._admission.waiting == 1)
    closing = asyncio.create_task(asyncio.to_thread(bench.engine.close))
    bench.gate.open()
    assert isinstance(await outcome(waiting), UnavailableError | list)
    await closing


async def test_death_tells_those_in_line(make: Callable[..., Engine]) -> None:
    bench = await held(make(when_full="wait"))
    waiting = bench.call(*several(7, 20, 5))
    await until(lambda: bench.engine._admission.waiting == 1)
    bench.gate.error = RuntimeError("gone")
    bench.gate.let()
    assert isinstance(await outcome(waiting), InternalError)
    assert bench.engine.failure is not None


async def test_lower_priorities_first_where_the_operator_wants_it(make: Callable[..., Engine]) -> None:
    bench = Bench(make(priority_order="lower-first"), Metrics())
    await bench.busy()
    calls = [bench.call(ids(6 + i, 20), priority=priority) for i, priority in enumerate((0, 5, -5))]
    await until(lambda: bench.queued + 20 * (bench.prefetched is not None) == 60)
    bench.gate.open()
    await asyncio.gather(*calls)
    order = [batch[0] for batch in bench.gate.seen() if batch != [5]]
    assert order.index(8) < order.index(7), "-5 before 5"


# --- tokenizer threads ---


async def test_a_tokenizer_that_hangs_loses_its_caller_only(make: Callable[..., Engine]) -> None:
    engine = make(tokenizer_timeout=0.2, tokenizer_threads=1)
    hold = threading.Event()
    encode = engine._encoder.encode

    def hangs(prompts: Any, *args: Any) -> Any:
        if prompts[0].text == "hang":
            hold.wait(PATIENCE)
        return encode(prompts, *args)

    engine._encoder.encode = hangs  # type: ignore[method-assign]
    stuck = asyncio.create_task(engine.classify([TextPrompt("hang")]))
    behind = asyncio.create_task(engine.classify([TextPrompt("the coffee")]))
    error = await outcome(stuck)
    assert isinstance(error, InternalError)
    assert "took more than 0.2 s" in error.message
    assert len(await outcome(behind)) == 1, "a new thread took the place of the lost one"
    assert engine._threads.lost == 1
    assert engine._admission.tokenizing == 0
    hold.set()
    await until(lambda: sum(t.name.startswith("assay-tokenizer") for t in threading.enumerate()) <= 1)


async def test_too_many_lost_threads_end_the_engine(make: Callable[..., Engine]) -> None:
    engine = make(tokenizer_timeout=0.05, tokenizer_threads=1)
    hold = threading.Event()
    engine._encoder.encode = lambda *args: hold.wait(PATIENCE)  # type: ignore[method-assign]
    for _ in range(9):
        assert isinstance(await outcome(engine.classify([TextPrompt("hang")])), InternalError)
    assert engine.failure is not None
    assert isinstance(await outcome(engine.classify([TextPrompt("hang")])), UnavailableError)
    hold.set()


class Panic(BaseException):
    """As the tokenizers' library raises when its Rust code panics."""


@pytest.mark.parametrize("error", [Panic("secret words"), StopIteration(), SystemExit(1)], ids=repr)
async def test_a_tokenizer_that_panics_fails_one_request(
    make: Callable[..., Engine], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make()
    encode = engine._encoder.encode

    def panics(prompts: Any, *args: Any) -> Any:
        if prompts[0].text == "bad":
            raise error
        return encode(prompts, *args)

    engine._encoder.encode = panics  # type: ignore[method-assign]
    calls = [asyncio.create_task(engine.classify([TextPrompt(text)])) for text in ("so", "bad", "new")]
    first, bad, last = [await outcome(call) for call in calls]
    assert isinstance(bad, InternalError)
    assert "secret" not in caplog.text + bad.message
    assert len(first) == len(last) == 1
    assert engine.available


async def test_a_call_that_was_cancelled_in_the_queue_is_not_run() -> None:
    threads = Threads(1, "t", patience=PATIENCE)
    hold, ran = threading.Event(), []
    first = asyncio.ensure_future(threads.run(hold.wait, PATIENCE))
    second = asyncio.ensure_future(threads.run(ran.append, 1))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    hold.set()
    assert await first is True
    assert await threads.run(len, "abc") == 3
    assert ran == []
    threads.close(UnavailableError("closed"))
    with pytest.raises(UnavailableError):
        await threads.run(len, "abc")


async def test_close_tells_calls_that_wait_for_a_thread() -> None:
    threads = Threads(1, "t", patience=PATIENCE)
    hold = threading.Event()
    running = asyncio.ensure_future(threads.run(hold.wait, PATIENCE))
    await until(lambda: threads._hands and threads._hands[0].round is not None)
    waiting = asyncio.ensure_future(threads.run(len, "abc"))
    await until(lambda: len(threads.line) == 1)
    closing = asyncio.create_task(asyncio.to_thread(threads.close, UnavailableError("closed")))
    await until(lambda: threads._closing is not None)
    hold.set()
    await closing
    assert await running is True
    assert isinstance(await outcome(waiting), UnavailableError)


# --- nothing is left behind ---


async def test_threads_and_tasks_end_with_the_engine(folder: Path) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    for _ in range(3):
        engine = Engine.load(EngineConfig(str(folder)))
        engine.start()
        await engine.classify([TextPrompt("so new")] * 5, Options())
        await engine.drain()
        await asyncio.to_thread(engine.close)
    left = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert not [name for name in left if name.startswith("assay")]
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- a stranger's tokenizer ---


def save_pattern(folder: Path, pattern: str) -> None:
    """A checkpoint whose tokenizer splits by this pattern before anything else."""
    save_bert(folder, num_hidden_layers=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.BertPreTokenizer()])
    tokenizer.save(str(folder / "tokenizer.json"))


async def test_a_pattern_that_explodes_fails_its_text_alone(tmp_path: Path) -> None:
    """The library gives up by a panic after ten million steps back; those beside it are answered."""
    save_pattern(tmp_path, "(?:a|aa)+c")
    engine = Engine.load(EngineConfig(str(tmp_path)))
    engine.start()
    texts = ["so new", "a" * 40 + "dc", "the coffee"]
    first, bad, last = [
        await outcome(call) for call in [asyncio.create_task(engine.classify([TextPrompt(text)])) for text in texts]
    ]
    assert isinstance(bad, InternalError)
    assert "library failed" in bad.message
    assert len(first) == len(last) == 1
    assert len(await engine.classify([TextPrompt("so new")])) == 1
    await asyncio.to_thread(engine.close)


async def test_a_pattern_that_takes_for_ever_is_given_up(tmp_path: Path) -> None:
    """Each word stays below the library's limit, and there are many."""
    save_pattern(tmp_path, "(?:a|aa)+c")
    engine = Engine.load(EngineConfig(str(tmp_path), tokenizer_timeout=0.3, tokenizer_threads=1))
    engine.start()
    stuck = asyncio.create_task(engine.classify([TextPrompt(("a" * 31 + "dc ") * 20)]))
    behind = asyncio.create_task(engine.classify([TextPrompt("the coffee")]))
    error = await outcome(stuck)
    assert isinstance(error, InternalError)
    assert "took more than 0.3 s" in error.message
    assert len(await outcome(behind)) == 1
    await asyncio.to_thread(engine.close)

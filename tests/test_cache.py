"""The cache of answers: the same bits again, bounded in memory, never in the way of an error, a drain or a death."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from assay.config import EngineConfig
from assay.engine.cache import ResultCache
from assay.engine.engine import Engine
from assay.errors import InternalError, UnavailableError
from assay.sequence import Prediction, Sequence, TextPrompt, Timings
from tests.e2e.process import in_process
from tests.test_engine import Bench, benched, ids, outcome, several, until
from tests.test_engine_faults import failing_for
from tests.test_shared import counted
from tests.tiny import save_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_bert(folder, max_position_embeddings=32)
    return folder


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with benched(folder, max_cache_bytes=100_000, when_full="wait") as bench:
        yield bench


def prediction(*scores: float, label: str = "x") -> Prediction:
    return Prediction(label, [*scores], [-score for score in scores], 1, Timings(1.0, 1.0, 1.0))


# --- the cache alone ---


def test_what_is_kept_comes_back_to_the_last_bit() -> None:
    cache = ResultCache(10_000)
    rng = Random(0)
    kept = Prediction("x", [rng.random() for _ in range(5)], [1e-45, -0.0, 3e38, 0.1, 1 / 3], 3, Timings(1, 1, 1))
    corrected = Prediction("y", [0.25], [2.0], 3, calibrated=[rng.random()])
    cache.put(Sequence([1, 2, 3]), kept)
    cache.put(Sequence([1, 2, 4]), corrected)
    timings = Timings(0.5)
    found = cache.get(Sequence([1, 2, 3], timings=timings))
    assert found == kept
    assert repr(found.logits) == repr(kept.logits), "the sign of zero too"
    assert found.timings is timings, "a look-up has no time in the queue and on the device"
    assert cache.get(Sequence([1, 2, 4])) == corrected
    assert cache.get(Sequence([1, 2, 3], activation="none")) is None
    assert cache.get(Sequence([1, 2, 3], [0, 0, 1])) is None
    assert (cache.hits, cache.misses) == (2, 2)


def test_no_caller_reaches_what_is_kept() -> None:
    cache = ResultCache(10_000)
    first = prediction(0.25, 0.5)
    cache.put(Sequence([1]), first)
    first.probs[0] = 7.0
    found = cache.get(Sequence([1]))
    assert found is not None
    found.logits.clear()
    assert cache.get(Sequence([1])) == prediction(0.25, 0.5)


def test_the_first_answer_stays() -> None:
    cache = ResultCache(10_000)
    cache.put(Sequence([1]), prediction(0.25))
    before = cache.num_bytes
    cache.put(Sequence([1]), prediction(0.26))
    assert cache.get(Sequence([1])) == prediction(0.25)
    assert cache.num_bytes == before


def test_the_least_recently_used_goes_first() -> None:
    cache = ResultCache(10_000)
    cache.put(Sequence([0]), prediction(0.0))
    one = cache.num_bytes
    cache = ResultCache(3 * one + 5)
    for i in (1, 2, 3):
        cache.put(Sequence([i]), prediction(float(i)))
    assert cache.get(Sequence([1])) is not None
    cache.put(Sequence([4]), prediction(4.0))
    assert [cache.get(Sequence([i])) is not None for i in (1, 2, 3, 4)] == [True, False, True, True]
    assert (len(cache), cache.num_bytes) == (3, 3 * one)


def test_what_is_larger_than_the_cache_drives_nothing_out() -> None:
    cache = ResultCache(2000)
    cache.put(Sequence([1]), prediction(0.5))
    cache.put(Sequence([2]), prediction(*[0.5] * 1000))
    assert len(cache) == 1
    assert cache.get(Sequence([1])) is not None


def test_without_room_nothing_is_counted() -> None:
    cache = ResultCache(0)
    cache.put(Sequence([1]), prediction(0.5))
    assert cache.get(Sequence([1])) is None
    assert (len(cache), cache.hits, cache.misses, cache.num_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("labels", [1, 28])
@pytest.mark.parametrize("max_bytes", [300_000, 1_200_000])
def test_the_bound_is_on_memory_itself(labels: int, max_bytes: int) -> None:
    """Through growing tables and many times its content: what the interpreter allots stays below it."""
    sequences = [Sequence([i % 100, i // 100]) for i in range(3 * max_bytes // 300)]
    answer = prediction(*[0.5] * labels)
    tracemalloc.start()
    try:
        cache = ResultCache(max_bytes)
        most = 0
        for i, sequence in enumerate(sequences):
            cache.put(sequence, answer)
            if i % 100 == 0:
                most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(cache) < len(sequences) / 2
    assert max_bytes / 2 < most <= max_bytes


# --- in an engine ---


async def test_what_was_answered_is_not_computed_again(bench: Bench) -> None:
    bench.gate.open()
    first = await bench.call(ids(6, 3), TextPrompt("the coffee"))
    again = await bench.call(TextPrompt("the coffee"), ids(7, 3), ids(6, 3), ids(6, 3))
    assert [again[2], again[3], again[0]] == [first[0], first[0], first[1]]
    assert [found.num_tokens for found in again] == [4, 3, 3, 3]
    assert [sum(batch.packed.num_tokens for batch in bench.gate.batches)] == [3 + 4 + 3]
    for found in (again[0], again[2], again[3]):
        assert (found.timings.queue < 0.01, found.timings.inference) == (True, 0.0)
        assert found.timings.tokenize > 0
    assert again[1].timings.inference > 0
    assert counted(bench.metrics, "assay_cache_hits_total") == 2
    assert counted(bench.metrics, "assay_cache_misses_total") == 3
    assert counted(bench.metrics, "assay_shared_sequences_total") == 1
    assert counted(bench.metrics, "assay_sequences_total") == 3
    assert counted(bench.metrics, "assay_cache_bytes") == bench.engine._cache.num_bytes > 0
    assert not bench.engine._waiters


async def test_another_activation_is_another_answer(bench: Bench) -> None:
    bench.gate.open()
    (soft,) = await bench.call(ids(6, 3))
    (raw,) = await bench.call(ids(6, 3), activation="none")
    assert raw.probs == raw.logits != soft.probs


async def test_a_hit_does_not_queue(bench: Bench) -> None:
    """While the device is busy and tokens wait for it."""
    bench.gate.let()
    (first,) = await bench.call(ids(6, 6))
    held = bench.call(ids(5, 1))
    await until(lambda: len(bench.gate.batches) == 2)
    waiting = bench.call(*several(8, 15, 12))
    await until(lambda: bench.queued >= 165)
    assert await outcome(bench.call(ids(6, 6))) == [first]
    assert not waiting.done()
    assert not held.done()


async def test_errors_are_not_kept(bench: Bench) -> None:
    bench.gate.open()
    run = bench.engine._worker.runner.run
    failing_for(bench.engine, {9}, ValueError("bug"))
    assert isinstance(await outcome(bench.call(ids(9, 3))), InternalError)
    bench.engine._worker.runner.run = run  # type: ignore[method-assign]
    assert len(await bench.call(ids(9, 3))) == 1
    assert bench.engine._cache.hits == 0


async def test_an_answer_whose_caller_has_left_is_kept(bench: Bench) -> None:
    gone = await bench.busy()
    gone.cancel()
    await until(gone.done)
    bench.gate.open()
    await until(lambda: len(bench.engine._cache) == 1)
    assert len(await bench.call(ids(5, 1))) == 1
    assert bench.engine._cache.hits == 1


async def test_a_draining_engine_answers_no_new_request(bench: Bench) -> None:
    bench.gate.open()
    await bench.call(ids(6, 3))
    bench.engine.refuse()
    assert isinstance(await outcome(bench.call(ids(6, 3))), UnavailableError)


async def test_a_dead_engine_answers_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even who was accepted before it died, and is being tokenized."""
    bench.gate.open()
    await bench.call(ids(6, 3))
    encode = bench.engine._encoder.encode

    def dies_meanwhile(*args: object) -> list[Sequence]:
        bench.engine.failure = RuntimeError("gone")
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.engine._encoder, "encode", dies_meanwhile)
    assert isinstance(await outcome(bench.call(ids(6, 3))), UnavailableError)
    assert isinstance(await outcome(bench.call(ids(6, 3))), UnavailableError)


async def test_windows_are_kept_each(bench: Bench) -> None:
    bench.gate.open()
    text = " ".join(("coffee", "was", "great")[i * i % 3] for i in range(20))
    (first,) = await bench.call(TextPrompt(text), window="max", window_size=6, window_overlap=2)
    computed = len(bench.gate.batches)
    (again,) = await bench.call(TextPrompt(text), window="max", window_size=6, window_overlap=2)
    assert again == first
    assert again.window == first.window is not None
    assert len(bench.gate.batches) == computed


async def test_off_unless_it_is_asked_for(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder)))
    engine.start()
    for _ in range(2):
        (found,) = await engine.classify([ids(6, 3)])
        assert found.timings.inference > 0
    assert len(engine._cache) == 0
    await asyncio.to_thread(engine.close)


async def test_the_wire_shows_only_that_it_was_quick(folder: Path) -> None:
    async with in_process(folder, engine={"max_cache_bytes": 100_000}) as server:
        first, again = [await server.classify(input=["great coffee", "new"]) for _ in range(2)]
    assert again.headers["x-inference-time"] == again.headers["x-queue-time"] == "0"
    volatile = ("id", "created")
    one, other = (
        {key: value for key, value in answer.json().items() if key not in volatile} for answer in (first, again)
    )
    assert one == other
    assert one["usage"]["prompt_tokens"] == 4 + 3

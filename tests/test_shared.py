"""Sequences of equal content in one request: computed once, answered each, and nobody outside sees a difference."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from assay.config import EngineConfig
from assay.engine.engine import Engine
from assay.errors import InternalError
from assay.metrics import Metrics
from assay.sequence import Options, Prediction, Sequence, TextPrompt, TokenPrompt
from tests.e2e.process import in_process
from tests.test_engine import Bench, alone, benched, ids, outcome, until
from tests.test_engine_faults import failing_for
from tests.tiny import save_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_bert(folder, max_position_embeddings=32)
    return folder


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with benched(folder) as bench:
        yield bench


def counted(metrics: Metrics, name: str) -> float:
    return float(metrics.render().decode().partition(f'{name}{{model="m"}} ')[2].partition("\n")[0])


async def test_equal_sequences_are_computed_once_and_answered_each(bench: Bench) -> None:
    bench.gate.open()
    predictions = await bench.call(ids(6, 3), ids(7, 4), ids(6, 3), ids(6, 4), ids(6, 3))
    assert sorted(i for batch in bench.gate.seen() for i in batch) == [6, 6, 7]
    assert [prediction.num_tokens for prediction in predictions] == [3, 4, 3, 4, 3]
    for prediction, prompt in zip(predictions, (ids(6, 3), ids(7, 4), ids(6, 3), ids(6, 4), ids(6, 3)), strict=True):
        expected = alone(bench.engine, prompt.token_ids)
        assert prediction.label == expected.label
        assert prediction.logits == pytest.approx(expected.logits, abs=2e-5)
        assert prediction.probs == pytest.approx(expected.probs, abs=2e-5)
    first, third = predictions[0], predictions[2]
    assert third == first
    assert third.timings == first.timings
    assert third.timings.inference > 0


async def test_whoever_changes_one_prediction_changes_no_other(bench: Bench) -> None:
    bench.gate.open()
    first, second = await bench.call(ids(6, 3), ids(6, 3))
    kept = ([*second.probs], [*second.logits], second.timings.queue)
    first.probs.clear()
    first.logits[0] = 100.0
    first.timings.queue = 100.0
    assert (second.probs, second.logits, second.timings.queue) == kept


async def test_they_count_once_in_the_queue_and_in_what_was_scored(bench: Bench) -> None:
    await bench.busy()
    call = bench.call(*[ids(6, 6)] * 10, ids(7, 6))
    await until(lambda: bench.queued == 12)
    assert bench.engine._admission.tokenizing == 0
    bench.gate.open()
    assert len(await call) == 11
    await until(lambda: counted(bench.metrics, "assay_sequences_total") == 3)
    assert counted(bench.metrics, "assay_tokens_total") == 1 + 6 + 6
    assert counted(bench.metrics, "assay_shared_sequences_total") == 9
    assert not bench.engine._waiters


async def test_a_caller_that_leaves_takes_all_of_them_along(bench: Bench) -> None:
    await bench.busy()
    gone = bench.call(ids(6, 6), ids(6, 6), ids(7, 6), ids(6, 6))
    await until(lambda: bench.queued == 12)
    gone.cancel()
    await until(gone.done)
    assert bench.queued == 0
    assert len(bench.engine._waiters) == 1, "the one on the device"
    bench.gate.open()
    assert len(await bench.call(ids(8, 6), ids(8, 6))) == 2
    assert bench.gate.seen() == [[5], [8]]
    assert counted(bench.metrics, "assay_shared_sequences_total") == 1, "who had no answer shared none"


async def test_an_error_of_one_is_the_requests(bench: Bench) -> None:
    bench.gate.open()
    failing_for(bench.engine, {9}, ValueError("bug"))
    assert isinstance(await outcome(bench.call(ids(8, 3), ids(9, 3), ids(9, 3))), InternalError)
    assert counted(bench.metrics, "assay_shared_sequences_total") == 0
    assert not bench.engine._waiters


async def test_a_pair_is_not_the_text_of_the_same_ids(bench: Bench) -> None:
    """Its second text has token types of its own."""
    (pair,) = bench.engine._encoder.encode([TextPrompt("the", "coffee")], Options())
    bench.gate.open()
    as_pair, as_ids = await bench.call(TextPrompt("the", "coffee"), TokenPrompt(pair.token_ids))
    assert len(bench.gate.batches[0].sequences) == 2
    assert as_pair.logits != as_ids.logits


def test_what_is_equal_content() -> None:
    plain = Sequence([5, 6, 0, 1], activation="softmax")
    assert plain.content == Sequence([5, 6, 0, 1], index=3, prompt=2, priority=1, activation="softmax").content
    others = (
        Sequence([5, 6, 1, 0], activation="softmax"),
        Sequence([5, 6, 0, 1], activation="none"),
        Sequence([5, 6, 0, 1], activation="sigmoid"),
        Sequence([5, 6], [0, 1], activation="softmax"),
        Sequence([5, 6, 0, 1], [0, 0, 0, 1], activation="softmax"),
        Sequence([5, 6, 0], activation="softmax"),
    )
    assert len({plain.content, *(other.content for other in others)}) == 1 + len(others)


async def test_equal_windows_of_a_text(bench: Bench) -> None:
    """Twenty words the same: of the windows between the first and the last, all are one."""
    bench.gate.open()
    text = "coffee " * 20
    (prediction,) = await bench.call(TextPrompt(text), window="mean", window_size=6, window_overlap=2)
    sequences = bench.engine._encoder.encode(
        [TextPrompt(text)], Options(window="mean", window_size=6, window_overlap=2)
    )
    assert len(sequences) > 5
    assert sum(len(batch.sequences) for batch in bench.gate.batches) == len({s.content for s in sequences}) < 5
    assert prediction.num_tokens == sum(sequence.num_tokens for sequence in sequences)
    rows = [alone(bench.engine, sequence.token_ids).logits for sequence in sequences]
    assert prediction.logits == pytest.approx([sum(column) / len(rows) for column in zip(*rows, strict=True)], abs=2e-5)
    assert prediction.window is not None
    assert prediction.window.count == len(sequences)


async def test_in_deterministic_mode_too(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), deterministic=True))
    engine.start()
    once = (await engine.classify([ids(6, 3)]))[0]
    twice: list[Prediction] = await engine.classify([ids(7, 9), ids(6, 3), ids(6, 3)])
    assert twice[1] == twice[2] == once
    await asyncio.to_thread(engine.close)


async def test_the_wire_shows_nothing_of_it(folder: Path) -> None:
    async with in_process(folder, served_model_name="m") as server:
        one = (await server.classify(input=["great coffee"])).json()
        answer = (await server.classify(input=["great coffee", "new", "great coffee", "great coffee"])).json()
    assert [row["index"] for row in answer["data"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4 + 3 + 4 + 4
    for row in (answer["data"][0], answer["data"][2], answer["data"][3]):
        assert row["label"] == one["data"][0]["label"]
        assert row["probs"] == pytest.approx(one["data"][0]["probs"], abs=1e-5)

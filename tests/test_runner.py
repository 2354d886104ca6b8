"""One batch through one model: answers in the batch's order, each with its own activation, NaN told as an error."""

import math
from pathlib import Path

import pytest
import torch

from assay.engine.runner import ModelRunner, form
from assay.errors import InternalError
from assay.model.registry import load_model
from assay.sequence import Prediction, Sequence
from tests.tiny import save_bert, word_embeddings

BAD = 50  # the token whose embedding is broken


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("model")
    save_bert(folder, max_position_embeddings=32)
    return ModelRunner(load_model(folder))


def broken_runner(folder: Path, value: float) -> ModelRunner:
    save_bert(folder)
    model = load_model(folder)
    word_embeddings(model)[BAD] = value
    return ModelRunner(model)


def test_form_sorts_by_length_and_keeps_every_sequence() -> None:
    sequences = [Sequence([1] * length) for length in (3, 1, 2, 1, 3)]
    batch = form(sequences)
    assert [s.num_tokens for s in batch.sequences] == [1, 1, 2, 3, 3]
    assert {id(s) for s in batch.sequences} == {id(s) for s in sequences}
    assert batch.packed.cu_seqlens.tolist() == [0, 1, 2, 4, 7, 10]
    assert [(run.count, run.length) for run in batch.packed.runs] == [(2, 1), (1, 2), (2, 3)]
    assert sequences[0].num_tokens == 3


def test_answers_in_the_batchs_order(runner: ModelRunner) -> None:
    batch = form([Sequence([7 + i] * (1 + i % 4)) for i in range(12)])
    answers = runner.run(batch)
    for sequence, answer in zip(batch.sequences, answers, strict=True):
        assert isinstance(answer, Prediction)
        alone = runner.run(form([sequence]))[0]
        assert isinstance(alone, Prediction)
        assert answer.num_tokens == sequence.num_tokens
        assert answer.logits == pytest.approx(alone.logits, abs=2e-5)
        assert answer.label == runner.model.labels[answer.logits.index(max(answer.logits))]


def test_mixed_activations_within_one_batch(runner: ModelRunner) -> None:
    kinds = ("none", "softmax", "sigmoid") * 2
    batch = form([Sequence([9, 10], activation=kind) for kind in kinds])
    for sequence, answer in zip(batch.sequences, runner.run(batch), strict=True):
        assert isinstance(answer, Prediction)
        total = sum(math.exp(x) for x in answer.logits)
        expected = {
            "none": answer.logits,
            "softmax": [math.exp(x) / total for x in answer.logits],
            "sigmoid": [1 / (1 + math.exp(-x)) for x in answer.logits],
        }
        assert answer.probs == pytest.approx(expected[sequence.activation], abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_an_error_for_their_sequences_only(tmp_path: Path, value: float) -> None:
    runner = broken_runner(tmp_path, value)
    batch = form([Sequence(ids) for ids in ([5, 6, 7], [5, BAD, 7], [8, 9, 10], [BAD])])
    for sequence, answer in zip(batch.sequences, runner.run(batch), strict=True):
        if BAD in sequence.token_ids:
            assert isinstance(answer, InternalError)
            assert "finite" in answer.message
        else:
            assert isinstance(answer, Prediction)
            assert all(map(math.isfinite, answer.logits))


def test_timings_are_filled(runner: ModelRunner) -> None:
    sequence = Sequence([5])
    answer = runner.run(form([sequence]))[0]
    assert isinstance(answer, Prediction)
    assert answer.timings is sequence.timings
    assert answer.timings.inference > 0


def test_answers_are_plain_floats_without_a_graph(runner: ModelRunner) -> None:
    answer = runner.run(form([Sequence([5], activation="none")]))[0]
    assert isinstance(answer, Prediction)
    assert all(type(x) is float for x in answer.logits + answer.probs)
    assert not any(parameter.requires_grad for parameter in runner.model.module.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("positions", [1, 3, 8])
def test_warm_up_fits_a_model_of_few_positions(tmp_path: Path, positions: int) -> None:
    save_bert(tmp_path, max_position_embeddings=positions)
    runner = ModelRunner(load_model(tmp_path))
    runner.warm_up()

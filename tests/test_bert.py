"""Parity with transformers in float32 on awkward random BERT checkpoints, and proof that the tolerance bites."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from assay.engine.encoder import PromptEncoder
from assay.engine.runner import ModelRunner, form
from assay.engine.tokenizer import load_tokenizer
from assay.model import bert
from assay.model.attention import attention
from assay.model.batch import PackedBatch, pack
from assay.model.layer import Layer
from assay.model.registry import LoadedModel, load_model
from assay.sequence import Options, Prediction, Sequence, TextPrompt, TokenPrompt
from tests.tiny import bert_logits, bert_vocab, load_plain, rewrite_weights, save_bert
from tests.wrong_attention import leaking, wrongly_scaled

pytestmark = pytest.mark.usefixtures("vectors")

TOLERANCE = 1e-4  # against transformers, on logits of order 1
ROUNDING = 2e-5  # against ourselves in other company: only the order of float32 sums differs
BITES = 1e-2  # what a real mistake must exceed
MAX_LEN = 24
EVERY_LENGTH = [*range(1, MAX_LEN + 1), 1, 2, 2, MAX_LEN, MAX_LEN]
SOME_LENGTHS = [1, 1, 2, 7, 7, 15, MAX_LEN - 1, MAX_LEN]
_INPUTS = ["input_ids", "token_type_ids"]


def random_sequences(lengths: Iterable[int], types: int = 2, seed: int = 0) -> list[Sequence]:
    """Random ids and token types, shuffled."""
    rng = random.Random(seed)
    lengths = list(lengths)
    rng.shuffle(lengths)
    size = len(bert_vocab())
    return [
        Sequence([rng.randrange(size) for _ in range(n)], sorted(rng.randrange(types) for _ in range(n)))
        for n in lengths
    ]


def scored(model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    """Logits [seqs, labels] of one batch, in the order given."""
    batch = form(sequences)
    answers = dict(zip(map(id, batch.sequences), ModelRunner(model).run(batch), strict=True))
    rows = []
    for sequence in sequences:
        answer = answers[id(sequence)]
        assert isinstance(answer, Prediction)
        rows.append(answer.logits)
    return torch.tensor(rows)


def oracle(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
    return torch.stack([bert_logits(model, s.token_ids, s.token_type_ids) for s in sequences])


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd_head_dim": {"hidden_size": 35, "num_attention_heads": 5},
    "head_dim_1": {"hidden_size": 6, "num_attention_heads": 6, "num_hidden_layers": 2},
    "one_label": {"num_labels": 1},
    "two_labels": {"num_labels": 2, "num_attention_heads": 1},
    "seven_labels": {"num_labels": 7, "num_hidden_layers": 1, "intermediate_size": 7},
    "one_token_type": {"type_vocab_size": 1},
    "three_token_types": {"type_vocab_size": 3},
    "relu": {"hidden_act": "relu"},
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "silu": {"hidden_act": "silu"},
    "large_eps": {"layer_norm_eps": 0.1},
    "sharded": {"shard": "20KB"},
    "multi_label": {"problem_type": "multi_label_classification"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_alone_packed_reordered_and_transformers_agree(tmp_path: Path, shape: str) -> None:
    settings = {"max_position_embeddings": MAX_LEN} | SHAPES[shape]
    theirs = save_bert(tmp_path, seed=len(shape), **settings)
    if shape == "sharded":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = load_model(tmp_path)
    sequences = random_sequences(SOME_LENGTHS, settings.get("type_vocab_size", 2))

    expected = oracle(theirs, sequences)
    packed = scored(ours, sequences)
    alone = torch.cat([scored(ours, [sequence]) for sequence in sequences])
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(1)).tolist()
    unsorted = pack([sequences[i] for i in order])
    with torch.inference_mode():
        reordered = ours.module(unsorted)

    assert float(expected.std()) > 0.2, "logits too small for the tolerance to mean anything"
    assert float(expected.std()) < 20
    assert worst(packed, expected) <= TOLERANCE
    assert worst(alone, packed) <= ROUNDING
    assert worst(reordered, packed[order]) <= ROUNDING


def test_legacy_gamma_and_beta(tmp_path: Path) -> None:
    theirs = save_bert(tmp_path)

    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if "LayerNorm" in name:
                old = name.replace("weight", "gamma").replace("bias", "beta")
                tensors[old] = tensors.pop(name)

    rewrite_weights(tmp_path, age)
    sequences = random_sequences(SOME_LENGTHS)
    assert worst(scored(load_model(tmp_path), sequences), oracle(theirs, sequences)) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_saved_in_half_precision_are_computed_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = save_bert(tmp_path)

    def halve(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    rewrite_weights(tmp_path, halve)
    sequences = random_sequences(SOME_LENGTHS)
    ours = load_model(tmp_path)
    assert {parameter.dtype for parameter in ours.module.parameters()} == {torch.float32}
    assert worst(scored(ours, sequences), oracle(theirs.to(dtype).float(), sequences)) <= TOLERANCE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("bert")
    return folder, save_bert(folder, seed=3, max_position_embeddings=MAX_LEN)


def test_every_length_up_to_the_limit(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    folder, theirs = checkpoint
    sequences = random_sequences(EVERY_LENGTH)
    assert worst(scored(load_model(folder), sequences), oracle(theirs, sequences)) <= TOLERANCE


def test_texts_and_pairs_from_tokenizer_to_logits(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    """Our tokenizer and model against transformers' own, pairs with their token types."""
    folder, theirs = checkpoint
    ours = load_model(folder)
    pool = PromptEncoder(load_tokenizer(folder), ours.vocab_size, MAX_LEN)
    prompts = [
        TextPrompt("the coffee was great."),
        TextPrompt("loved the new café", "coffee was great"),
        TextPrompt("", "so"),
        TextPrompt(""),
        TextPrompt("updates, updated!", "ZZZ 日本"),
    ]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_input_names=_INPUTS)
    sequences = pool.encode(prompts, Options())
    expected = []
    for prompt, sequence in zip(prompts, sequences, strict=True):
        encoded = tokenizer(prompt.text, prompt.text_pair)
        assert sequence.token_ids == encoded["input_ids"]
        assert (sequence.token_type_ids or [0] * sequence.num_tokens) == encoded["token_type_ids"]
        expected.append(bert_logits(theirs, encoded["input_ids"], encoded["token_type_ids"]))
    assert any(sequence.token_type_ids for sequence in sequences)
    assert worst(scored(ours, sequences), torch.stack(expected)) <= TOLERANCE


def test_token_id_prompts_are_scored_as_they_are(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    folder, theirs = checkpoint
    ours = load_model(folder)
    pool = PromptEncoder(load_tokenizer(folder), ours.vocab_size, MAX_LEN)
    ids = [[0], [5, 6, 7], [0] * MAX_LEN, list(range(MAX_LEN)), [ours.vocab_size - 1, 0]]
    sequences = pool.encode([TokenPrompt(token_ids) for token_ids in ids], Options())
    assert [sequence.token_ids for sequence in sequences] == ids
    expected = torch.stack([bert_logits(theirs, token_ids) for token_ids in ids])
    assert worst(scored(ours, sequences), expected) <= TOLERANCE


# bfloat16 keeps 8 bits of mantissa and float16 11; over three layers of weights this large (a trained model's are
# smaller) an error in the logits of some 2⁻⁸ · 30 and 2⁻¹¹ · 30 must be allowed.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.15), ("float16", 0.02)])
def test_half_precision_trunk(checkpoint: tuple[Path, PreTrainedModel], dtype: Any, tolerance: float) -> None:
    folder, theirs = checkpoint
    ours = load_model(folder, dtype=dtype)
    plain = load_plain(folder, dtype=dtype).module
    assert {p.dtype for p in plain.trunk.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in plain.head.parameters()} == {torch.float32}
    sequences = random_sequences(SOME_LENGTHS)
    expected = oracle(theirs, sequences)
    got = scored(ours, sequences)
    assert got.dtype == torch.float32
    assert worst(got, expected) <= tolerance
    assert worst(got, expected) > TOLERANCE, "the trunk was not computed in half precision at all"


def _causal(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, **options: Any) -> Tensor:
    return attention(q, k, v, batch, **options | {"causal": True})


def _swapped(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, **options: Any) -> Tensor:
    return attention(q, v, k, batch, **options)


@pytest.mark.parametrize("broken", [leaking, wrongly_scaled, _causal, _swapped])
def test_tolerance_bites_when_attention_is_wrong(
    checkpoint: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor]
) -> None:
    folder, theirs = checkpoint
    monkeypatch.setattr(Layer, "of", lambda *_: None)  # a layer in one call has its attention to itself
    ours = load_model(folder)
    monkeypatch.setattr(bert, "attention", broken)
    sequences = random_sequences(SOME_LENGTHS)
    assert worst(scored(ours, sequences), oracle(theirs, sequences)) > BITES


def _positions_off_by_one(batch: PackedBatch) -> PackedBatch:
    return replace(batch, position_ids=(batch.position_ids + 1).clamp(max=MAX_LEN - 1))


def _positions_run_on(batch: PackedBatch) -> PackedBatch:
    return replace(batch, position_ids=torch.arange(batch.num_tokens) % MAX_LEN)


def _no_types(batch: PackedBatch) -> PackedBatch:
    return replace(batch, token_type_ids=torch.zeros_like(batch.token_type_ids))


def _wrong_pool(batch: PackedBatch) -> PackedBatch:
    return replace(
        batch,
        cu_seqlens=torch.cat([batch.cu_seqlens[1:] - 1, batch.cu_seqlens[-1:]]),
        runs=tuple(replace(run, start=max(0, run.start - 1)) for run in batch.runs),
    )


@pytest.mark.parametrize("broken", [_positions_off_by_one, _positions_run_on, _no_types, _wrong_pool])
def test_tolerance_bites_when_the_batch_is_wrong(
    checkpoint: tuple[Path, PreTrainedModel], broken: Callable[[PackedBatch], PackedBatch]
) -> None:
    folder, theirs = checkpoint
    ours = load_model(folder)
    sequences = random_sequences(SOME_LENGTHS)
    with torch.inference_mode():
        logits = ours.module(broken(pack(sequences)))
    assert worst(logits, oracle(theirs, sequences)) > BITES


def test_tolerance_bites_on_the_other_gelu(tmp_path: Path) -> None:
    """The tanh approximation differs from the exact GELU by 5e-4 at most; the tolerance must still tell them apart."""
    theirs = save_bert(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"gelu_new"'))
    sequences = random_sequences(SOME_LENGTHS)
    assert worst(scored(load_model(tmp_path), sequences), oracle(theirs, sequences)) > 2 * TOLERANCE

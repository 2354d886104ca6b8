"""Parity with transformers in float32 on random DeBERTa checkpoints, and proof that the tolerance bites."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from assay import Classifier
from assay.errors import CheckpointError, ConfigError
from assay.model import deberta, disentangled
from assay.model.batch import pack, pick
from assay.model.compiled import MARGIN
from assay.model.disentangled import disentangled_attention
from assay.model.layer import Layer
from assay.model.registry import load_model
from assay.sequence import Sequence
from tests.tiny import rewrite_weights
from tests.tiny_modern import ours_of, reordered, save_deberta, some_sequences, theirs_of, worst

pytestmark = pytest.mark.usefixtures("vectors")

TOLERANCE = 1e-4  # against transformers, on logits of order 1
ROUNDING = 2e-5  # against ourselves in other company: only the order of float32 sums differs
BITES = 1e-2  # what a real mistake must exceed
MAX_LEN = 48  # twice the largest relative position, twelve times the last exact bucket

SHAPES: dict[str, dict[str, Any]] = {
    "v3": {},
    "own_projections": {"share_att_key": False},
    "c2p": {"pos_att_type": "c2p"},
    "p2c": {"pos_att_type": ["p2c"]},
    "own_c2p": {"pos_att_type": ["c2p"], "share_att_key": False},
    "own_p2c": {"pos_att_type": "p2c", "share_att_key": False},
    "string": {"pos_att_type": "p2c | c2p", "num_labels": 1},
    "neither": {"pos_att_type": None},
    "not_relative": {"relative_attention": False, "position_biased_input": True},
    "no_buckets": {"position_buckets": -1},
    "no_buckets_c2p": {"position_buckets": -1, "pos_att_type": "c2p", "share_att_key": False},
    "as_many_as_positions": {"max_relative_positions": -1, "num_labels": 2},
    "no_buckets_all_positions": {"max_relative_positions": -1, "position_buckets": -1},
    "two_buckets": {"position_buckets": 2},
    "odd_buckets": {"position_buckets": 7, "num_labels": 7},
    "many_buckets": {"position_buckets": 32},
    "no_norm": {"norm_rel_ebd": "none"},
    "positions": {"position_biased_input": True},
    "token_types": {"type_vocab_size": 2},
    "narrow_embeddings": {"embedding_size": 20, "position_biased_input": True, "type_vocab_size": 3},
    "convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "grouped_convolution": {"conv_kernel_size": 5, "conv_groups": 4},
    "odd_head_dim": {"hidden_size": 35, "num_attention_heads": 5},
    "head_dim_1": {"hidden_size": 6, "num_attention_heads": 6, "num_hidden_layers": 2},
    "tanh": {"hidden_act": "gelu_new", "pooler_hidden_act": "tanh", "layer_norm_eps": 0.1},
    "sharded": {"shard": "20KB"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_alone_packed_reordered_and_transformers_agree(tmp_path: Path, shape: str) -> None:
    settings = {"max_position_embeddings": MAX_LEN} | SHAPES[shape]
    theirs = save_deberta(tmp_path, seed=len(shape), **settings)
    if shape == "sharded":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = load_model(tmp_path)
    sequences = some_sequences(MAX_LEN, settings.get("type_vocab_size", 2))

    expected, packed = theirs_of(theirs, sequences), ours_of(ours, sequences)
    alone = torch.cat([ours_of(ours, [sequence]) for sequence in sequences])

    assert 0.1 < float(expected.std()) < 20, "logits too small or too large for the tolerance to mean anything"
    assert worst(packed, expected) <= TOLERANCE
    assert worst(alone, packed) <= ROUNDING
    assert worst(reordered(ours, sequences), packed) <= ROUNDING


# Long texts are computed in strips and blocks, many short ones in groups: every cut must lie where it does no harm.
@pytest.mark.parametrize(("rows", "strip", "scores"), [(512, 512, 1), (20, 7, 1), (7, 20, 3000), (16, 16, 1)])
@pytest.mark.parametrize("kinds", ["c2p|p2c", "c2p", "p2c"])
def test_strips_and_blocks_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str, rows: int, strip: int, scores: int
) -> None:
    theirs = save_deberta(tmp_path, seed=2, pos_att_type=kinds, num_hidden_layers=2)
    monkeypatch.setattr(disentangled, "_ROWS", rows)
    monkeypatch.setattr(disentangled, "_STRIP", strip)
    monkeypatch.setattr(disentangled, "_MAX_SCORES", scores)
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) <= TOLERANCE


def test_the_buckets_of_deberta_v3(tmp_path: Path) -> None:
    """256 buckets, 512 positions: texts longer than what is exact (128), and than a strip."""
    theirs = save_deberta(
        tmp_path, num_hidden_layers=1, max_position_embeddings=512, max_relative_positions=-1, position_buckets=256
    )
    ids = torch.randint(100, (512,), generator=torch.Generator().manual_seed(1)).tolist()
    sequences = [Sequence(ids[:length]) for length in (30, 65, 128, 129, 130, 130, 300, 512)]
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) <= TOLERANCE


def test_positions_that_a_checkpoint_holds_but_does_not_use(tmp_path: Path) -> None:
    theirs = save_deberta(tmp_path)
    rewrite_weights(
        tmp_path, lambda tensors: tensors.update({"deberta.embeddings.position_embeddings.weight": torch.ones(64, 36)})
    )
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) <= TOLERANCE


def test_through_the_library(tmp_path: Path) -> None:
    theirs = save_deberta(tmp_path, seed=5)
    sequences = some_sequences(MAX_LEN)
    with Classifier(str(tmp_path), dtype="float32", max_batch_tokens=100) as classifier:
        predictions = classifier.classify([sequence.token_ids for sequence in sequences])
    logits = torch.tensor([prediction.logits for prediction in predictions])
    assert worst(logits, theirs_of(theirs, sequences)) <= TOLERANCE


def test_bfloat16_trunk_and_no_float16(tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits of mantissa; weights this large leave an error of some 2⁻⁸ · 80 in the logits."""
    theirs = save_deberta(tmp_path, seed=6)
    sequences = some_sequences(MAX_LEN)
    difference = worst(ours_of(load_model(tmp_path, dtype="bfloat16"), sequences), theirs_of(theirs, sequences))
    assert TOLERANCE < difference <= 0.3
    with pytest.raises(ConfigError, match="float16"):
        load_model(tmp_path, dtype="float16")


def _without(place: int) -> Callable[..., Tensor]:
    def broken(*args: Any) -> Tensor:
        return disentangled_attention(*(None if i == place else x for i, x in enumerate(args)))

    return broken


def _swapped(q: Tensor, k: Tensor, v: Tensor, pos_key: Tensor, pos_query: Tensor, *rest: Any) -> Tensor:
    return disentangled_attention(q, k, v, pos_query.flip(2), pos_key.flip(2), *rest)


def _mirrored(q: Tensor, k: Tensor, v: Tensor, pos_key: Tensor, pos_query: Tensor, *rest: Any) -> Tensor:
    return disentangled_attention(q, k, v, pos_key.flip(2), pos_query.flip(2), *rest)


def _p2c_mirrored(q: Tensor, k: Tensor, v: Tensor, pos_key: Tensor, pos_query: Tensor, *rest: Any) -> Tensor:
    return disentangled_attention(q, k, v, pos_key, pos_query.flip(2), *rest)


def _wrong_scale(*args: Any) -> Tensor:
    return disentangled_attention(*args[:-2], args[-2] * 3**0.5, args[-1])


@pytest.mark.parametrize("broken", [_without(3), _without(4), _swapped, _mirrored, _p2c_mirrored, _wrong_scale])
def test_tolerance_bites_when_attention_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor]
) -> None:
    theirs = save_deberta(tmp_path, seed=7)
    monkeypatch.setattr(Layer, "of", lambda *_: None)  # a layer in one call has its attention to itself
    monkeypatch.setattr(deberta, "disentangled_attention", broken)
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) > BITES


# Each is a config read otherwise than it was written: what it says must have been obeyed before.
@pytest.mark.parametrize(
    "misread",
    [
        {"max_relative_positions": 40},
        {"norm_rel_ebd": "none"},
        {"pos_att_type": "c2p"},
        {"layer_norm_eps": 0.1},
        {"pooler_hidden_act": "tanh"},
        {"conv_act": "tanh"},
    ],
    ids=lambda misread: next(iter(misread)),
)
def test_tolerance_bites_when_the_config_is_misread(tmp_path: Path, misread: dict[str, Any]) -> None:
    theirs = save_deberta(tmp_path, seed=8, conv_kernel_size=3, conv_act="gelu")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | misread))
    if "norm_rel_ebd" in misread:
        rewrite_weights(tmp_path, lambda tensors: [tensors.pop(f"deberta.encoder.LayerNorm.{x}") for x in _AFFINE])
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) > BITES


_AFFINE = ("weight", "bias")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_attention_heads": 5}, "no multiple"),
        ({"conv_kernel_size": 4}, "is even"),
        ({"position_buckets": 1}, "position_buckets is 1"),
        ({"position_buckets": 100}, "half of it"),
        ({"pooler_hidden_size": 20}, "pooler_hidden_size is 20"),
        ({"attention_head_size": 64}, "attention_head_size is 64"),
        ({"share_att_key": False}, "missing"),
        ({"position_buckets": 10}, "misshapen"),
        ({"type_vocab_size": 2}, "missing: trunk.token_type_embeddings"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    save_deberta(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(CheckpointError, match=says):
        load_model(tmp_path)


@pytest.mark.parametrize("kinds", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids=str)
@pytest.mark.parametrize("lengths", [[1], [1, 1, 3], [7, 7, 70, 130], [600]], ids=str)
def test_one_query_a_sequence_is_that_query_among_all(lengths: list[int], kinds: tuple[str, ...]) -> None:
    """The last layer asks with the pooled tokens alone."""
    generator = torch.Generator().manual_seed(1)
    batch = pack([Sequence([1] * length) for length in lengths])
    q, k, v = (torch.randn(sum(lengths), 3, 4, generator=generator) for _ in range(3))
    pos_key, pos_query = (torch.randn(3, 4, 2 * (max(lengths) + MARGIN) - 1, generator=generator) for _ in range(2))
    tables = (pos_key if "c2p" in kinds else None, pos_query if "p2c" in kinds else None)
    everywhere = disentangled_attention(q, k, v, *tables, batch, 0.4)
    for rows in ("first", "last"):
        alone = disentangled_attention(q, k, v, *tables, batch, 0.4, rows)
        assert (alone - pick(everywhere, batch, rows)).abs().max() < 1e-5

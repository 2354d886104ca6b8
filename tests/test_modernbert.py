"""Parity with transformers in float32 on random ModernBERT checkpoints, and proof that the tolerance bites."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ModernBertForSequenceClassification

from assay import Classifier
from assay.errors import CheckpointError
from assay.model import modernbert
from assay.model.attention import attention
from assay.model.batch import PackedBatch
from assay.model.layer import Layer
from assay.model.mlp import MLP
from assay.model.registry import load_model
from assay.model.rotary import rotate
from tests.tiny import load_plain
from tests.tiny_modern import ours_of, reordered, save_modernbert, some_sequences, theirs_of, worst

pytestmark = pytest.mark.usefixtures("vectors")

TOLERANCE = 1e-4  # against transformers, on logits of order 1
ROUNDING = 2e-5  # against ourselves in other company: only the order of float32 sums differs
BITES = 1e-2  # what a real mistake must exceed
MAX_LEN = 48

BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 12}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"classifier_pooling": "mean"},
    "biases": BIASES,
    "biases_mean": {**BIASES, "classifier_pooling": "mean", "num_labels": 7},
    "norm_bias_only": {"norm_bias": True},
    "attention_bias_only": {"attention_bias": True, "num_labels": 1},
    "odd_half_of_head_dim": {"hidden_size": 30, "num_attention_heads": 5, "num_labels": 2},
    "head_dim_2": {"hidden_size": 12, "num_attention_heads": 6},
    "one_head": {"num_attention_heads": 1, "num_hidden_layers": 2},
    "odd_window": {"local_attention": 7},
    "window_of_one": {"local_attention": 1},
    "window_of_zero_reach_and_mean": {"local_attention": 0, "classifier_pooling": "mean"},
    "window_longer_than_the_text": {"local_attention": 4 * MAX_LEN},
    "every_second_layer_global": {"global_attn_every_n_layers": 2},
    "all_global": {"global_attn_every_n_layers": 1},
    "listed_layers": {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
    "thetas": {"global_rope_theta": 500.0, "local_rope_theta": 3.0},
    "yarn": {"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}},
    "tanh_gelu": {"hidden_activation": "gelu_pytorch_tanh"},
    "activations": {"hidden_activation": "silu", "classifier_activation": "relu"},
    "large_eps": {"norm_eps": 0.1},
    "sharded": {"shard": "20KB"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_alone_packed_reordered_and_transformers_agree(tmp_path: Path, shape: str) -> None:
    theirs = save_modernbert(tmp_path, seed=len(shape), **{"max_position_embeddings": MAX_LEN} | SHAPES[shape])
    if shape == "sharded":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = load_plain(tmp_path)
    sequences = some_sequences(MAX_LEN)

    expected, packed = theirs_of(theirs, sequences), ours_of(ours, sequences)
    alone = torch.cat([ours_of(ours, [sequence]) for sequence in sequences])

    assert 0.2 < float(expected.std()) < 20, "logits too small or too large for the tolerance to mean anything"
    assert worst(packed, expected) <= TOLERANCE
    assert worst(alone, packed) <= ROUNDING
    assert worst(reordered(ours, sequences), packed) <= ROUNDING


# The spelling of configs on the hub (v4): thetas at the top, layers by a number. `sliding_window` is one side.
@pytest.mark.parametrize(
    "old",
    [
        {"global_attn_every_n_layers": 3, "global_rope_theta": 800.0, "local_rope_theta": 40.0},
        {"global_attn_every_n_layers": 2},
        {"sliding_window": 2},
    ],
    ids=lambda old: next(iter(old)),
)
def test_configs_of_version_4(tmp_path: Path, old: dict[str, Any]) -> None:
    save_modernbert(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("layer_types", "rope_parameters"):
        del config[name]
    path.write_text(json.dumps(config | old))
    theirs = ModernBertForSequenceClassification.from_pretrained(tmp_path).eval()
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) <= TOLERANCE


def test_through_the_library(tmp_path: Path) -> None:
    theirs = save_modernbert(tmp_path, seed=5, classifier_pooling="mean")
    sequences = some_sequences(MAX_LEN)
    with Classifier(str(tmp_path), dtype="float32", max_batch_tokens=100) as classifier:
        predictions = classifier.classify([sequence.token_ids for sequence in sequences])
    logits = torch.tensor([prediction.logits for prediction in predictions])
    assert worst(logits, theirs_of(theirs, sequences)) <= TOLERANCE


# bfloat16 keeps 8 bits of mantissa; four layers of weights this large leave an error of some 2⁻⁸ · 80 in the logits.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.3), ("float16", 0.04)])
def test_half_precision_trunk(tmp_path: Path, dtype: Any, tolerance: float) -> None:
    theirs = save_modernbert(tmp_path, seed=6)
    sequences = some_sequences(MAX_LEN)
    difference = worst(ours_of(load_model(tmp_path, dtype=dtype), sequences), theirs_of(theirs, sequences))
    assert TOLERANCE < difference <= tolerance


def _no_window(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, **options: Any) -> Tensor:
    return attention(q, k, v, batch, **options | {"window": None})


def _narrower(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, **options: Any) -> Tensor:
    window = options["window"] and (options["window"][0] - 1, options["window"][1])
    return attention(q, k, v, batch, **options | {"window": window})


def _wrong_scale(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, **options: Any) -> Tensor:
    return attention(q, k, v, batch, **options | {"scale": 1.0})


def _no_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x


def _turned_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(x, cos, -sin)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("attention", _no_window),
        ("attention", _narrower),
        ("attention", _wrong_scale),
        ("rotate", _no_turn),
        ("rotate", _turned_back),
    ],
)
def test_tolerance_bites_when_attention_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., Tensor]
) -> None:
    theirs = save_modernbert(tmp_path, seed=7)
    monkeypatch.setattr(Layer, "of", lambda *_: None)  # a layer in one call has its attention to itself
    monkeypatch.setattr(modernbert, name, broken)
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(load_model(tmp_path), sequences), theirs_of(theirs, sequences)) > BITES


def _swap_thetas(model: nn.Module) -> None:
    trunk: Any = model.get_submodule("trunk")
    trunk.rotary, trunk.local_rotary = trunk.local_rotary, trunk.rotary


def _one_theta(model: nn.Module) -> None:
    trunk: Any = model.get_submodule("trunk")
    trunk.local_rotary = trunk.rotary


def _norm_the_first_layer(model: nn.Module) -> None:
    trunk: Any = model.get_submodule("trunk")
    trunk.layers[0].attn_norm = trunk.layers[1].attn_norm


def _gate_and_input_swapped(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, MLP):
            linear: Any = module.up
            linear.weight.data = linear.weight.data.roll(linear.weight.shape[0] // 2, dims=0)


def _pool_the_mean(model: nn.Module) -> None:
    head: Any = model.get_submodule("head")
    head.rows = None
    head.pool = lambda hidden, batch: torch.stack(
        [hidden[a:b].mean(0) for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
    )


def _no_head_norm(model: nn.Module) -> None:
    head: Any = model.get_submodule("head")
    head.norm = nn.Identity()


@pytest.mark.parametrize(
    "broken",
    [_swap_thetas, _one_theta, _norm_the_first_layer, _gate_and_input_swapped, _pool_the_mean, _no_head_norm],
)
def test_tolerance_bites_when_the_model_is_wrong(tmp_path: Path, broken: Callable[[nn.Module], None]) -> None:
    theirs = save_modernbert(tmp_path, seed=8)
    ours = load_plain(tmp_path)
    broken(ours.module)
    sequences = some_sequences(MAX_LEN)
    assert worst(ours_of(ours, sequences), theirs_of(theirs, sequences)) > BITES


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hidden_size": 36, "num_attention_heads": 12}, "even multiple"),
        ({"classifier_pooling": "max"}, "cls, mean"),
        ({"global_attn_every_n_layers": 0, "layer_types": None}, "at least 1"),
        ({"layer_types": ["full_attention"]}, "1 entries for 4 layers"),
        ({"norm_bias": True}, "missing: trunk.embeddings_norm.bias"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    save_modernbert(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(CheckpointError, match=says):
        load_model(tmp_path)

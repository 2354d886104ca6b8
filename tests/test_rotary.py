"""Rotary frequencies against transformers' own functions, for every type, within the trained length and beyond."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from assay.errors import CheckpointError
from assay.model.batch import pack
from assay.model.rotary import _SCALINGS, RopeConfig, Rotary, read_rope, rotate
from assay.sequence import Sequence
from tests.tiny_decoders import BASE

TYPES = ["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
CPU = torch.device("cpu")


def random_rope(kind: str, rng: random.Random) -> dict[str, Any]:
    """A config.json in v5 spelling with the optional fields present or absent by chance."""

    def maybe(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if rng.random() < 0.5}

    head_dim = rng.choice([4, 6, 10, 64, 128])
    longest = rng.choice([16, 100, 4096, 131072])
    original = rng.choice([4, 8, longest // 2, longest])
    trained = {"original_max_position_embeddings": original}
    factor = {"factor": rng.choice([1.0, 1.5, 4, 8.0, 32.0])}
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": rng.choice([50.0, 500, 10000.0, 1e6])}
    match kind:
        case "linear" | "dynamic":
            parameters |= factor
        case "llama3":
            parameters |= factor | trained
            parameters |= {"low_freq_factor": rng.choice([0.5, 1.0]), "high_freq_factor": rng.choice([2.0, 4.0])}
        case "yarn":
            parameters |= factor | maybe(**trained, truncate=False, beta_fast=rng.choice([4, 16.0, 64]))
            parameters |= maybe(beta_slow=rng.choice([0.5, 2, 3.0]), attention_factor=1.3)
            parameters |= rng.choice([{}, {"mscale": 0.7}, {"mscale": 0.7, "mscale_all_dim": 1.1}])
        case "longrope":
            parameters |= maybe(**trained, **factor, attention_factor=1.2)
            for name in ("short_factor", "long_factor"):
                parameters[name] = [rng.uniform(1, 9) for _ in range(head_dim // 2)]
    return {"head_dim": head_dim, "max_position_embeddings": longest, "rope_parameters": parameters}


def by_transformers(config: dict[str, Any], length: int) -> tuple[Tensor, float]:
    settings = LlamaConfig(**BASE | config)
    kind = settings.rope_parameters["rope_type"]
    if kind == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(settings)
    return ROPE_INIT_FUNCTIONS[kind](settings, CPU, seq_len=length)


@pytest.mark.parametrize("kind", TYPES)
def test_frequencies_equal_transformers(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(60):
        config = random_rope(kind, rng)
        rope = read_rope(config, config["head_dim"])
        longest, original = config["max_position_embeddings"], rope.original_max
        for length in {1, original, original + 1, longest, longest + 1, 3 * longest}:
            ours, amplitude = _SCALINGS[kind](rope, length, CPU)
            theirs, their_amplitude = by_transformers(config, length)
            torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0, msg=lambda text: f"{text}\n{config} {length}")  # noqa: B023
            assert amplitude == pytest.approx(their_amplitude, rel=1e-9), config


@pytest.mark.parametrize("kind", TYPES[1:])
def test_every_scaling_changes_the_angles(kind: str) -> None:
    config = random_rope(kind, random.Random(1))
    config |= {"head_dim": 10, "max_position_embeddings": 64}
    config["rope_parameters"] |= {"factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 50.0}
    config["rope_parameters"] |= {name: [2.0] * 5 for name in ("short_factor", "long_factor")}
    rope = read_rope(config, 10)
    plain, _ = _SCALINGS["default"](rope, 100, CPU)
    scaled, _ = _SCALINGS[kind](rope, 100, CPU)
    assert float((scaled / plain - 1).abs().max()) > 0.3


@pytest.mark.parametrize("type_key", ["rope_type", "type"])
@pytest.mark.parametrize("kind", TYPES)
def test_v4_and_v5_spellings_read_the_same(kind: str, type_key: str) -> None:
    config = random_rope(kind, random.Random(kind))
    rope = dict(config["rope_parameters"])
    v4 = {"max_position_embeddings": config["max_position_embeddings"], "rope_theta": rope.pop("rope_theta")}
    v4["rope_scaling"] = {type_key: rope.pop("rope_type"), **rope}
    old, new = read_rope(v4, config["head_dim"]), read_rope(config, config["head_dim"])
    assert (old.dim, old.theta, old.kind, old.usable_length) == (new.dim, new.theta, new.kind, new.usable_length)
    assert dict(old.scaling) == v4["rope_scaling"]
    for length in (1, 10**6):
        assert torch.equal(_SCALINGS[kind](old, length, CPU)[0], _SCALINGS[kind](new, length, CPU)[0])


def test_theta_is_the_default_where_the_config_is_silent() -> None:
    assert read_rope({"max_position_embeddings": 8}, 4).theta == 10000.0
    assert read_rope({"max_position_embeddings": 8, "rope_scaling": None}, 4, default_theta=1e6).theta == 1e6
    assert read_rope({"rope_theta": 7, "rope_parameters": {"rope_theta": 50}}, 4).theta == 50.0


def test_parameters_nested_by_layer_type() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 123.0},
    }
    raw = {"max_position_embeddings": 64, "rope_parameters": nested}
    full, sliding = (read_rope(raw, 8, layer_type=kind) for kind in nested)
    assert (full.kind, full.theta, full.scaling["factor"]) == ("linear", 1e6, 8.0)
    assert (sliding.kind, sliding.theta) == ("default", 123.0)


def test_length_trained_at_may_stand_beside_the_scaling() -> None:
    """Phi-3 writes it there, and transformers gives that one precedence."""
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    raw = {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_scaling": scaling}
    assert read_rope(raw, 8).original_max == 16
    scaling["original_max_position_embeddings"] = 32
    assert read_rope(raw, 8).original_max == 16


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_longrope_by_its_earlier_names(kind: str) -> None:
    scaling = {"type": kind, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert read_rope({"max_position_embeddings": 64, "rope_scaling": scaling}, 8).kind == "longrope"


@pytest.mark.parametrize("kind", TYPES)
def test_packed_angles_are_each_sequences_own(kind: str) -> None:
    config = random_rope(kind, random.Random(2)) | {"max_position_embeddings": 12, "head_dim": 8}
    config["rope_parameters"] |= {"original_max_position_embeddings": 12}
    config["rope_parameters"] |= {name: [1.5, 2.0, 3.0, 4.0] for name in ("short_factor", "long_factor")}
    rotary = Rotary(read_rope(config, 8))
    sequences = [Sequence([0] * n) for n in (3, 40, 12, 12, 13, 1)]
    packed = rotary(pack(sequences))
    alone = [rotary(pack([sequence])) for sequence in sequences]
    for i in range(2):
        assert torch.equal(packed[i], torch.cat([each[i] for each in alone]))


def test_rotate_pairs_halves_as_transformers_does(vectors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 9, 10, generator=generator) for heads in (4, 2))
    cos, sin = Rotary(RopeConfig(10, 50.0, 64))(pack([Sequence([0] * 9)]))
    theirs = apply_rotary_pos_emb(q, k, cos[None], sin[None])
    for mine, other in zip((q, k), theirs, strict=True):
        turned, theirs = rotate(mine[0].transpose(0, 1).clone(), cos, sin), other[0].transpose(0, 1)
        assert float((turned - theirs).abs().max()) < 1e-6
        assert vectors or torch.equal(turned, theirs), "without a kernel that rounds once less, they are the same bits"


def test_rotation_of_the_first_dimensions_leaves_the_rest() -> None:
    x = torch.randn(9, 3, 10, generator=torch.Generator().manual_seed(0))
    turned = rotate(x.clone(), *Rotary(RopeConfig(6, 50.0, 64))(pack([Sequence([0] * 9)])))
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert not torch.allclose(turned[1:, :, :6], x[1:, :, :6], atol=1e-2)
    # a rotation keeps lengths, and scores depend on distance alone
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
BROKEN: dict[str, tuple[Any, str]] = {
    "unknown type": ({"rope_type": "spiral"}, "'spiral'.*default, linear, dynamic, yarn, longrope, llama3"),
    "unknown type, v4": ({"type": "mrope"}, "'mrope'"),
    "no object": ("linear", "'linear'.*JSON object"),
    "linear without factor": ({"type": "linear"}, "'linear' needs factor"),
    "dynamic with null factor": ({"type": "dynamic", "factor": None}, "'dynamic' needs factor"),
    "yarn without factor": ({"type": "yarn"}, "'yarn' needs factor"),
    "longrope without long": ({"type": "longrope", "short_factor": [1.0] * 4}, "needs long_factor"),
    "longrope without short": ({"type": "longrope", "long_factor": [1.0] * 4}, "needs short_factor"),
    "longrope too short": ({"type": "longrope", **LONG, "short_factor": [1.0]}, "short_factor has 1 entries.*4"),
    "longrope too long": ({"type": "longrope", **LONG, "long_factor": [1.0] * 5}, "long_factor has 5 entries.*4"),
    "longrope of words": ({"type": "longrope", **LONG, "long_factor": ["a"] * 4}, "cannot be computed"),
    "longrope, no list": ({"type": "longrope", **LONG, "long_factor": 3}, "cannot be computed|entries"),
    "factor in words": ({"type": "linear", "factor": "four"}, "cannot be computed"),
    "factor zero": ({"type": "linear", "factor": 0}, "cannot be computed"),
    "factor NaN": ({"type": "dynamic", "factor": math.nan}, "cannot be computed"),
    "theta in words": ({"rope_type": "default", "rope_theta": "large"}, "rope_theta"),
    **{
        f"llama3 without {name}": (
            {"type": "llama3", **{k: v for k, v in LLAMA3.items() if k != name}},
            f"needs {name}",
        )
        for name in LLAMA3
    },
}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", BROKEN)
def test_unusable_scaling_is_refused_in_one_line(name: str, key: str) -> None:
    parameters, message = BROKEN[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        read_rope({"max_position_embeddings": 64, "rope_theta": 500.0, key: parameters}, 8)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)

"""Parity with transformers in float32 on random decoder checkpoints, and proof that the tolerance bites.

Beside each feature's parity stands the same comparison with that feature broken, which must fail by far.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assay.errors import CheckpointError, ConfigError
from assay.model import decoder
from assay.model.attention import attention
from assay.model.batch import pack
from assay.model.heads import TextClassifier
from assay.model.registry import LoadedModel, load_model
from assay.model.rotary import _SCALINGS, Rotary, _angles
from assay.sequence import Sequence
from tests.tiny import load_plain, rewrite_weights
from tests.tiny_decoders import (
    FAMILIES,
    VOCAB,
    Saved,
    logits_by_transformers,
    reload,
    rewrite_config,
    save_decoder,
    saved_once,
    to_v4,
)

pytestmark = pytest.mark.usefixtures("vectors")

TOLERANCE = 1e-4  # against transformers, on logits of order 1
ROUNDING = 2e-5  # against ourselves in other company: only the order of float32 sums differs
BITES = 1e-2  # what a real mistake must exceed

# Lengths around the windows (7) and the trained lengths (16), some twice, in no order.
LENGTHS = (17, 1, 60, 8, 16, 17, 8)


def sequences(seed: int = 0) -> list[Sequence]:
    rng = random.Random(seed)
    return [Sequence([rng.randrange(VOCAB) for _ in range(length)]) for length in LENGTHS]


def scored(model: LoadedModel, batch: list[Sequence]) -> Tensor:
    """Logits [seqs, labels] of one batch, packed in the order given."""
    with torch.inference_mode():
        logits: Tensor = model.module(pack(batch))
    return logits


def oracle(model: PreTrainedModel, batch: list[Sequence]) -> Tensor:
    return torch.stack([logits_by_transformers(model, sequence.token_ids) for sequence in batch])


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def load(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="float32", device="cpu")


def assert_exact(folder: Path, model: PreTrainedModel) -> None:
    """Alone = packed in any order = transformers."""
    ours, batch = load(folder), sequences()
    packed = scored(ours, batch)
    assert worst(packed, oracle(model, batch)) <= TOLERANCE
    assert packed.std() > 0.1, "logits too small to show anything"
    alone = torch.cat([scored(ours, [sequence]) for sequence in batch])
    assert worst(packed, alone) <= ROUNDING
    order = sorted(range(len(batch)), key=lambda i: batch[i].num_tokens)
    for permutation in (order, order[::-1]):
        assert worst(packed[permutation], scored(ours, [batch[i] for i in permutation])) <= ROUNDING


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **parameters}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
SHORT, LONG = [1.0, 1.1, 1.3, 1.5], [2.0, 3.0, 4.0, 6.0]
LONGROPE = rope("longrope", short_factor=SHORT, long_factor=LONG)
LINEAR = rope("linear", factor=4.0)
DYNAMIC = rope("dynamic", factor=4.0) | {"max_position_embeddings": 16}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
TWO_KINDS = ["sliding_attention", "full_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    # heads: every GQA ratio, head_dim that is not hidden / heads, the smallest that can turn
    "llama 6 kv heads": ("llama", {"num_key_value_heads": 6}),
    "llama 3 kv heads": ("llama", {"num_key_value_heads": 3}),
    "llama 1 kv head": ("llama", {"num_key_value_heads": 1}),
    "qwen3 1 kv head": ("qwen3", {"num_key_value_heads": 1, "head_dim": 22}),
    "gemma2 3 kv heads": ("gemma2", {"num_key_value_heads": 3}),
    "gemma2 1 kv head": ("gemma2", {"num_key_value_heads": 1}),
    "phi3 6 kv heads": ("phi3", {"num_key_value_heads": 6}),
    "llama head_dim 10": ("llama", {"head_dim": 10}),
    "llama head_dim 2": ("llama", {"head_dim": 2}),
    "mistral head_dim 18": ("mistral", {"head_dim": 18}),
    "qwen3 head_dim 6": ("qwen3", {"head_dim": 6}),
    "gemma3 head_dim 22": ("gemma3_text", {"head_dim": 22}),
    # biases
    "llama attention_bias": ("llama", {"attention_bias": True}),
    "llama mlp_bias": ("llama", {"mlp_bias": True}),
    "llama all biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 3}),
    "qwen3 attention_bias": ("qwen3", {"attention_bias": True}),
    "gemma attention_bias": ("gemma", {"attention_bias": True}),
    "gemma2 attention_bias": ("gemma2", {"attention_bias": True}),
    "gemma3 attention_bias": ("gemma3_text", {"attention_bias": True}),
    # embeddings, files, labels, norms
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "gemma2 untied": ("gemma2", {"tie_word_embeddings": False}),
    "llama sharded": ("llama", {"shard": "20KB"}),
    "phi3 sharded": ("phi3", {"shard": "20KB"}),
    "qwen2 one label": ("qwen2", {"num_labels": 1}),
    "llama two labels": ("llama", {"num_labels": 2}),
    "gemma2 seven labels": ("gemma2", {"num_labels": 7}),
    "llama large eps": ("llama", {"rms_norm_eps": 0.1}),
    "gemma3 large eps": ("gemma3_text", {"rms_norm_eps": 0.1}),
    # activations
    "llama gelu": ("llama", {"hidden_act": "gelu"}),
    "llama gelu_new": ("llama", {"hidden_act": "gelu_new"}),
    "llama relu": ("llama", {"hidden_act": "relu"}),
    "phi3 tanh": ("phi3", {"hidden_act": "tanh"}),
    "gemma gelu means tanh gelu": ("gemma", {"hidden_act": "gelu"}),
    "gemma silu": ("gemma", {"hidden_act": "silu"}),
    "gemma2 exact gelu": ("gemma2", {"hidden_activation": "gelu"}),
    "gemma3 silu": ("gemma3_text", {"hidden_activation": "silu"}),
    # windows
    "mistral without window": ("mistral", {"sliding_window": None}),
    "mistral window 1": ("mistral", {"sliding_window": 1}),
    "phi3 window": ("phi3", {"sliding_window": 9}),
    "qwen2 window from layer 1": ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen2 window unused": ("qwen2", {"sliding_window": 7, "use_sliding_window": False, "max_window_layers": 0}),
    "qwen3 window from layer 2": ("qwen3", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen2 layer_types": (
        "qwen2",
        {"sliding_window": 7, "use_sliding_window": True, "layer_types": [*TWO_KINDS, "sliding_attention"]},
    ),
    "gemma2 layer_types": ("gemma2", {"layer_types": [*TWO_KINDS[::-1], "full_attention"]}),
    "gemma3 pattern 2": ("gemma3_text", {"sliding_window_pattern": 2}),
    "gemma3 all full": ("gemma3_text", {"layer_types": ["full_attention"] * 3}),
    # scores
    "gemma2 no softcap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma2 hard softcap": ("gemma2", {"attn_logit_softcapping": 0.3, "query_pre_attn_scalar": 1}),
    "gemma3 softcap unused": ("gemma3_text", {"attn_logit_softcapping": 0.5, "attn_implementation": "eager"}),
    # rope
    "llama theta": ("llama", rope("default")),
    "llama linear": ("llama", LINEAR),
    "llama dynamic": ("llama", DYNAMIC),
    "llama llama3": ("llama", LLAMA3),
    "llama yarn": ("llama", rope("yarn", **YARN)),
    "llama longrope": ("llama", LONGROPE | rope("longrope", **{**LONGROPE["rope_parameters"], **YARN})),
    "mistral yarn mscale": ("mistral", rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.2, truncate=False)),
    "qwen2 yarn betas": ("qwen2", rope("yarn", **YARN, beta_fast=4.0, beta_slow=0.5)),
    "qwen3 yarn attention_factor": ("qwen3", rope("yarn", **YARN, attention_factor=1.4)),
    "qwen3 dynamic": ("qwen3", DYNAMIC),
    "gemma linear": ("gemma", LINEAR),
    "gemma2 dynamic": ("gemma2", DYNAMIC),
    "gemma3 linear and local": ("gemma3_text", {"rope_parameters": GEMMA3_ROPE, "sliding_window_pattern": 2}),
    "phi3 longrope": ("phi3", LONGROPE | {"original_max_position_embeddings": 16}),
    "phi3 partial": ("phi3", rope("default", partial_rotary_factor=0.5)),
    "phi3 partial longrope": (
        "phi3",
        rope("longrope", short_factor=SHORT[:2], long_factor=LONG[:2], partial_rotary_factor=0.5)
        | {"original_max_position_embeddings": 16},
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose more to waking threads than they gain by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_once(CASES, tmp_path_factory.mktemp)


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str, saved: Saved) -> None:
    assert_exact(*saved(name))


V4 = [
    *FAMILIES,
    "qwen2 window from layer 1",
    "qwen3 window from layer 2",
    "gemma3 pattern 2",
    "phi3 window",
    *(name for name, (_, config) in CASES.items() if "rope_parameters" in config),
]


@pytest.mark.parametrize("name", V4)
def test_v4_spelling(name: str, saved: Saved, tmp_path: Path) -> None:
    family, config = CASES[name]
    # transformers 5 no longer understands `type` in Gemma 3, whose configs have always said rope_type
    type_key = "rope_type" if family == "gemma3_text" else random.Random(name).choice(["type", "rope_type"])
    save_decoder(tmp_path, family, **config)
    rewrite_config(tmp_path, lambda raw: to_v4(raw, type_key))
    if "sliding_window_pattern" in config:
        rewrite_config(tmp_path, lambda raw: raw.update(sliding_window_pattern=config["sliding_window_pattern"]))
    assert "rope_parameters" not in json.loads((tmp_path / "config.json").read_text())
    assert_exact(tmp_path, reload(tmp_path, family))


def test_sharded_is_sharded(saved: Saved) -> None:
    for name in ("llama sharded", "phi3 sharded"):
        assert len(list(saved(name)[0].glob("*.safetensors"))) > 3


# What transformers' config classes assume where config.json is silent; a window of 4096 is seen in the config only.
SILENT: dict[str, tuple[str, list[str]]] = {
    "gemma2": ("gemma2", ["query_pre_attn_scalar", "attn_logit_softcapping", "layer_types"]),
    "gemma3_text": ("gemma3_text", ["query_pre_attn_scalar", "rope_parameters", "layer_types"]),
    "qwen2": ("qwen2", ["layer_types", "use_sliding_window", "max_window_layers", "rope_parameters"]),
    "phi3": ("phi3", ["rms_norm_eps", "hidden_act", "rope_parameters"]),
    "gemma": ("gemma", ["hidden_act", "rms_norm_eps", "rope_parameters"]),
    "gemma3 silu": ("gemma3_text", ["hidden_activation"]),
    "llama": ("llama", ["head_dim", "attention_bias", "mlp_bias", "hidden_act", "tie_word_embeddings"]),
}


@pytest.mark.parametrize("name", SILENT)
def test_absent_fields_mean_what_they_mean_to_transformers(name: str, tmp_path: Path) -> None:
    family, absent = SILENT[name]
    save_decoder(tmp_path, family)
    rewrite_config(tmp_path, lambda raw: [raw.pop(field, None) for field in absent])
    assert_exact(tmp_path, reload(tmp_path, family))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_absent_window_is_the_familys_and_null_is_none(family: str, saved: Saved) -> None:
    raw = json.loads((saved(family)[0] / "config.json").read_text())
    absent = {name: value for name, value in raw.items() if name != "sliding_window"}
    assert (4095, 0) in decoder.read_decoder(absent, family).windows
    assert set(decoder.read_decoder({**absent, "sliding_window": None}, family).windows) == {None}


@pytest.mark.parametrize("name", ["mistral", "phi3 window", "llama"])
def test_families_without_layer_types_ignore_them(name: str, tmp_path: Path) -> None:
    family, config = CASES[name]
    model = save_decoder(tmp_path, family, **config)
    rewrite_config(tmp_path, lambda raw: raw.update(layer_types=[*TWO_KINDS, "full_attention"]))
    if family == "llama":
        rewrite_config(tmp_path, lambda raw: raw.update(sliding_window=7))
    assert_exact(tmp_path, model)


def test_phi3_longrope_by_its_earlier_name(saved: Saved, tmp_path: Path) -> None:
    save_decoder(tmp_path, *CASES["phi3 longrope"][:1], **CASES["phi3 longrope"][1])
    rewrite_config(tmp_path, lambda raw: to_v4(raw, "type"))
    rewrite_config(tmp_path, lambda raw: raw["rope_scaling"].update(type="su"))
    assert_exact(tmp_path, reload(tmp_path, "phi3"))


def test_tied_checkpoint_that_still_holds_its_lm_head(tmp_path: Path) -> None:
    model = save_decoder(tmp_path, "gemma2")
    embeddings = model.get_input_embeddings().weight.detach().clone()
    rewrite_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embeddings}))
    assert_exact(tmp_path, model)


def test_the_true_last_token_is_pooled_even_if_it_is_the_pad_id(tmp_path: Path) -> None:
    """transformers steps back over tokens that equal pad_token_id; vLLM, SGLang and we pool what the text ends in."""
    pad = 5
    model = save_decoder(tmp_path, "llama", pad_token_id=pad)
    text = Sequence([7, 8, 9, pad, pad])
    ours = scored(load(tmp_path), [text])[0]
    assert worst(ours, logits_by_transformers(model, text.token_ids)) <= TOLERANCE
    assert worst(ours, logits_by_transformers(model, text.token_ids, pad_token_id=pad)) > BITES
    assert (
        worst(
            scored(load(tmp_path), [Sequence([7, 8, 9])])[0],
            logits_by_transformers(model, text.token_ids, pad_token_id=pad),
        )
        <= TOLERANCE
    )


# Each feature broken once. A break gets the module and monkeypatch.
Break = Callable[[TextClassifier, pytest.MonkeyPatch], None]


def without(**override: Any) -> Break:
    """Attention with some of its arguments overridden."""
    return lambda module, patch: patch.setattr(
        decoder, "attention", lambda q, k, v, batch, **kw: attention(q, k, v, batch, **{**kw, **override})
    )


def no_rope(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder, "rotate", lambda x, cos, sin, norm: norm(x) if norm else x)


def interleaved_rope(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    """Neighbours paired, as GPT-J and Meta's own Llama files do, and not halves."""

    def rotate(x: Tensor, cos: Tensor, sin: Tensor, norm: decoder.RMSNorm | None) -> Tensor:
        x = norm(x) if norm else x
        cos, sin = (part[:, None, : x.shape[-1] // 2] for part in (cos, sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    patch.setattr(decoder, "rotate", rotate)


def other_gqa_order(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    """Query heads dealt to KV heads in turn, and not in blocks."""

    def dealt(q: Tensor, k: Tensor, v: Tensor, batch: Any, **kw: Any) -> Tensor:
        dealing = torch.arange(q.shape[1]).view(-1, k.shape[1]).t().flatten()
        return attention(q[:, dealing], k, v, batch, **kw)[:, dealing.argsort()]

    patch.setattr(decoder, "attention", dealt)


def each_layer(**attributes: Any) -> Break:
    """Attributes of every layer replaced: by a module or value, or by what a function makes of the layer."""

    def apply(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
        for layer in module.trunk.layers:
            for name, value in attributes.items():
                made = value(layer) if callable(value) and not isinstance(value, nn.Module) else value
                setattr(layer, name, made)

    return apply


def no_bias(path: str) -> Break:
    return lambda module, patch: [layer.get_submodule(path).bias.data.zero_() for layer in module.trunk.layers]  # type: ignore[return-value]


def no_qk_norm_weight(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    for layer in module.trunk.layers:
        layer.q_norm.weight.data.fill_(0.0 if layer.q_norm.more else 1.0)


def windows_of(shift: int) -> Break:
    def apply(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
        windows = [layer.shape.window for layer in module.trunk.layers]
        for i, layer in enumerate(module.trunk.layers):
            layer.shape = replace(layer.shape, window=windows[(i + shift) % len(windows)])

    return apply


def wider_window(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    for layer in module.trunk.layers:
        window = layer.shape.window
        layer.shape = replace(layer.shape, window=window and (window[0] + 1, 0))


def rotary_with(**fields: Any) -> Break:
    def apply(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
        module.trunk.rotary = Rotary(replace(module.trunk.rotary.config, **fields))

    return apply


def longest_decides(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    """A scaling by length that takes the batch's longest sequence and not each one's own."""
    config = module.trunk.rotary.config
    inv_freq, amplitude = _SCALINGS[config.kind](config, max(LENGTHS), torch.device("cpu"))
    module.trunk.rotary.forward = lambda batch: _angles(batch.position_ids, inv_freq, amplitude)


def swapped_thetas(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    trunk = module.trunk
    trunk.rotary, trunk.local_rotary = trunk.local_rotary, trunk.rotary


def plain_norms(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    """Norms scaled by w where the family means 1 + w."""
    for part in module.modules():
        if isinstance(part, decoder.RMSNorm):
            part.more = 0.0


def no_embedding_scale(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    module.trunk.embedding_scale = None


def no_last_norm(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder, "normed_sum", lambda norm, x, more: x + more)


def swapped_halves(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    """Up before gate in the fused matrix."""
    for layer in module.trunk.layers:
        gate, up = layer.mlp.up.weight.data.chunk(2)
        layer.mlp.up.weight.data = torch.cat([up, gate])


def token_before_last(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    module.head.rows = None
    module.head.pool = lambda hidden, batch: hidden[(batch.cu_seqlens[1:] - 2).clamp(min=0)]


def leak(module: TextClassifier, patch: pytest.MonkeyPatch) -> None:
    """Positions that go on counting from one sequence to the next do no harm to rope; one mask for the batch does."""
    module.head.rows = None

    def one_sequence(q: Tensor, k: Tensor, v: Tensor, batch: Any, **kw: Any) -> Tensor:
        return attention(q, k, v, pack([Sequence(batch.input_ids.tolist())]), **kw)

    patch.setattr(decoder, "attention", one_sequence)


NOTHING = nn.Identity()
NORM_AFTER = [each_layer(attn_out_norm=NOTHING), each_layer(mlp_out_norm=NOTHING)]
SCALED = [
    "llama linear", "llama dynamic", "llama llama3", "llama yarn", "llama longrope", "mistral yarn mscale",
    "qwen2 yarn betas", "qwen3 yarn attention_factor", "phi3 longrope", "phi3 partial longrope",
    "gemma3 linear and local",
]  # fmt: skip
SLIDING = [
    "mistral", "phi3 window", "gemma2", "gemma3_text", "gemma3 pattern 2", "qwen2 window from layer 1",
    "qwen3 window from layer 2", "qwen2 layer_types", "gemma2 layer_types",
]  # fmt: skip


@dataclass(frozen=True)
class Broken:
    apply: Break
    cases: list[str]


BREAKS = {
    "rope off": Broken(no_rope, [*FAMILIES, "llama head_dim 2", "phi3 partial"]),
    "rope interleaved": Broken(interleaved_rope, list(FAMILIES)),
    "causal off": Broken(
        without(causal=False), ["mistral without window", "gemma3 all full", "llama", "qwen2", "qwen3", "gemma", "phi3"]
    ),
    "sequences leak": Broken(leak, list(FAMILIES)),
    "window off": Broken(without(window=None), SLIDING),
    "window one wider": Broken(wider_window, SLIDING),
    "window on other layers": Broken(
        windows_of(1), ["gemma2", "gemma2 layer_types", "gemma3 pattern 2", "qwen2 window from layer 1"]
    ),
    "softcap off": Broken(without(softcap=None), ["gemma2", "gemma2 hard softcap"]),
    "scale of head_dim": Broken(
        each_layer(shape=lambda layer: replace(layer.shape, scale=layer.shape.head_dim**-0.5)),
        ["gemma2", "gemma3_text"],
    ),
    "q/k norms off": Broken(each_layer(q_norm=None, k_norm=None), ["qwen3", "gemma3_text"]),
    "q norm unweighted": Broken(no_qk_norm_weight, ["qwen3", "gemma3_text"]),
    "norm after attention off": Broken(NORM_AFTER[0], ["gemma2", "gemma3_text"]),
    "norm after MLP off": Broken(NORM_AFTER[1], ["gemma2", "gemma3_text"]),
    "norms by w": Broken(plain_norms, ["gemma", "gemma2", "gemma3_text"]),
    "last norm off": Broken(no_last_norm, list(FAMILIES)),
    "embedding scale off": Broken(no_embedding_scale, ["gemma", "gemma2", "gemma3_text"]),
    "GQA order": Broken(other_gqa_order, [*FAMILIES, "llama 3 kv heads"]),
    "qkv bias off": Broken(no_bias("qkv"), ["llama attention_bias", "qwen2", "qwen3 attention_bias"]),
    "o bias off": Broken(no_bias("attn_out"), ["llama attention_bias", "gemma2 attention_bias"]),
    "MLP up bias off": Broken(no_bias("mlp.up"), ["llama mlp_bias"]),
    "MLP down bias off": Broken(no_bias("mlp.down"), ["llama mlp_bias"]),
    "gate and up swapped": Broken(swapped_halves, list(FAMILIES)),
    "rope scaling ignored": Broken(rotary_with(kind="default"), SCALED),
    "rope theta ignored": Broken(rotary_with(theta=10000.0), ["llama theta"]),
    "rope of every dimension": Broken(rotary_with(dim=8), ["phi3 partial"]),
    "rope by the longest": Broken(longest_decides, ["llama dynamic", "llama longrope", "phi3 longrope"]),
    "local theta swapped": Broken(swapped_thetas, ["gemma3_text", "gemma3 pattern 2", "gemma3 linear and local"]),
    "pooled token": Broken(token_before_last, list(FAMILIES)),
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, broken in BREAKS.items() for case in broken.cases])
def test_a_broken_feature_is_seen(name: str, case: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = saved(case)
    model, batch = load_plain(folder, dtype="float32", device="cpu"), sequences()
    right = scored(model, batch)
    assert isinstance(model.module, TextClassifier)
    BREAKS[name].apply(model.module, monkeypatch)
    assert worst(right, scored(model, batch)) > BITES


# Root mean square of the error, in units of the logits' own spread. Roundings of 2^-8 (bfloat16) and 2^-11 (float16)
# grow through three layers of large random weights; transformers rounds as much, at other places.
SIXTEEN_BIT = {"bfloat16": 0.15, "float16": 0.02}


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits(family: str, dtype: Any, saved: Saved) -> None:
    folder, model = saved(family)
    if dtype == "float16" and family in ("gemma2", "gemma3_text"):
        with pytest.raises(ConfigError, match="overflows in float16; use bfloat16 or float32"):
            load_model(folder, dtype=dtype, device="cpu")
        return
    ours, batch = load_model(folder, dtype=dtype, device="cpu"), sequences()
    plain = load_plain(folder, dtype=dtype, device="cpu").module
    assert {parameter.dtype for parameter in plain.trunk.parameters()} == {getattr(torch, dtype)}
    assert {parameter.dtype for parameter in plain.head.parameters()} == {torch.float32}
    logits, exact = scored(ours, batch), oracle(model, batch)
    theirs = oracle(copy.deepcopy(model).to(getattr(torch, dtype)), batch)
    assert logits.dtype == torch.float32
    off, their_off = (float((each - exact).square().mean().sqrt() / exact.std()) for each in (logits, theirs))
    assert 1e-6 < off <= SIXTEEN_BIT[dtype]
    assert off <= 2 * their_off


def refused(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    rewrite_config(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rope type": ("llama", {"rope_parameters": {"rope_type": "spiral"}}, "'spiral'"),
    "rope factor": ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'linear' needs factor"),
    "llama3 field": ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "needs low_freq_factor"),
    "longrope list": ("phi3", rope("longrope", short_factor=[1.0], long_factor=LONG), "1 entries, should be 4"),
    "kv heads": ("llama", {"num_key_value_heads": 4}, "not a multiple of num_key_value_heads 4"),
    "layer_types": ("qwen2", {"layer_types": TWO_KINDS}, "2 entries for 3 layers"),
    "activation": ("llama", {"hidden_act": "xielu"}, "'xielu'"),
    "two-sided": ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "no hidden size": ("llama", {"hidden_size": None}, "no hidden_size"),
    "a layer more": ("llama", {"num_hidden_layers": 4, "layer_types": None}, "missing: trunk.layers.3"),
    "a layer less": ("llama", {"num_hidden_layers": 2, "layer_types": None}, "left over: model.layers.2"),
    "head_dim": ("llama", {"head_dim": 10}, "misshapen"),
    "bias not there": ("llama", {"attention_bias": True}, "missing: trunk.layers.0.qkv.bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_does_not_fit_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    family, change, message = REFUSED[name]
    save_decoder(tmp_path, family)

    def apply(raw: dict[str, Any]) -> None:
        if "rope_scaling" in change:
            to_v4(raw)
        raw.update(change)

    assert message in refused(tmp_path, apply)


def test_a_bias_that_the_config_denies_is_left_over(tmp_path: Path) -> None:
    save_decoder(tmp_path, "llama", attention_bias=True)
    message = refused(tmp_path, lambda raw: raw.update(attention_bias=False))
    assert "left over: model.layers.0.self_attn" in message

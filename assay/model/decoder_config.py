"""What config.json says of a decoder, read by its family's flags. Knows no tensors and no layers.

Where a field is absent, transformers' own default for the family holds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from assay.errors import CheckpointError
from assay.model.attention import Window
from assay.model.blueprint import read_config
from assay.model.rotary import RopeConfig, read_rope

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Flags:
    """Where a family differs from Llama. `qkv_bias`, `o_bias`: True, False, or None for config's `attention_bias`."""

    qkv_bias: bool | None = None
    o_bias: bool | None = None
    qk_norm: bool = False
    gemma: bool = False  # norms by 1 + w, embeddings times sqrt(hidden), tanh GELU
    four_norms: bool = False  # norms after attention and MLP too
    query_scalar: bool = False  # scores by query_pre_attn_scalar, and not by head_dim
    softcap: bool = False  # scores soft-capped by attn_logit_softcapping (in Gemma 3's configs too, but unused there)
    windows: Callable[[Raw, int], bool] = lambda raw, layer: False  # which layers slide
    defaults: Raw = field(default_factory=dict)  # what transformers assumes where config.json is silent
    local_theta: bool = False  # sliding layers turn by a rope of their own


def _every_layer(raw: Raw, layer: int) -> bool:
    return True


def _typed(otherwise: Callable[[Raw, int], bool]) -> Callable[[Raw, int], bool]:
    """Families whose v5 configs list layer_types; v4 configs leave it to a rule."""

    def slides(raw: Raw, layer: int) -> bool:
        kinds = raw.get("layer_types")
        return kinds[layer] == "sliding_attention" if kinds else otherwise(raw, layer)

    return slides


_qwen = _typed(lambda raw, i: bool(raw.get("use_sliding_window")) and i >= int(raw.get("max_window_layers", 28)))
_gemma2 = _typed(lambda raw, i: i % 2 == 0)
_gemma3 = _typed(lambda raw, i: (i + 1) % int(raw.get("sliding_window_pattern", 6)) != 0)
_WINDOW = {"sliding_window": 4096}

FAMILIES = {
    "llama": Flags(),
    "mistral": Flags(qkv_bias=False, o_bias=False, windows=_every_layer, defaults=_WINDOW),
    "qwen2": Flags(qkv_bias=True, o_bias=False, windows=_qwen, defaults=_WINDOW),
    "qwen3": Flags(qk_norm=True, windows=_qwen, defaults=_WINDOW),
    "gemma": Flags(gemma=True),
    "gemma2": Flags(
        gemma=True,
        four_norms=True,
        query_scalar=True,
        softcap=True,
        windows=_gemma2,
        defaults=_WINDOW | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0},
    ),
    "gemma3_text": Flags(
        gemma=True,
        four_norms=True,
        qk_norm=True,
        query_scalar=True,
        windows=_gemma3,
        defaults=_WINDOW | {"query_pre_attn_scalar": 256},
        local_theta=True,
    ),
    "phi3": Flags(
        qkv_bias=False,
        o_bias=False,
        windows=_every_layer,
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "internlm2": Flags(),
}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """config.json, read by a family's flags. `windows`: one entry a layer, None where it sees everything before it."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    act: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    scale: float
    softcap: float | None
    windows: tuple[Window | None, ...]
    rope: RopeConfig
    local_rope: RopeConfig | None
    flags: Flags

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}."
            )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields that every decoder's config.json must have, and those that most have."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: int = 0
    attn_logit_softcapping: float = 0.0
    sliding_window: int = 0
    rope_local_base_freq: float = 10000.0


def read_decoder(raw: Raw, family: str) -> DecoderConfig:
    """config.json of a decoder. Raises CheckpointError naming a missing or mistyped field."""
    flags = FAMILIES[family]
    raw = {**flags.defaults, **raw}
    fields = read_config(_Fields, raw)
    head_dim = fields.head_dim or (256 if flags.gemma else fields.hidden_size // fields.num_attention_heads)
    bias = bool(raw.get("bias", True)) if family == "internlm2" else bool(raw.get("attention_bias"))
    scalar = fields.query_pre_attn_scalar if flags.query_scalar and fields.query_pre_attn_scalar else head_dim
    if flags.gemma and raw.get("use_bidirectional_attention"):
        raise CheckpointError("config.json sets use_bidirectional_attention, which is not supported for this family.")
    return DecoderConfig(
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        num_hidden_layers=fields.num_hidden_layers,
        num_attention_heads=fields.num_attention_heads,
        intermediate_size=fields.intermediate_size,
        num_key_value_heads=fields.num_key_value_heads or fields.num_attention_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.rms_norm_eps,
        act=_activation(raw, flags),
        qkv_bias=bias if flags.qkv_bias is None else flags.qkv_bias,
        o_bias=bias if flags.o_bias is None else flags.o_bias,
        mlp_bias=bool(raw.get("mlp_bias")) and family == "llama",
        scale=scalar**-0.5,
        softcap=(fields.attn_logit_softcapping or None) if flags.softcap else None,
        windows=_windows(raw, fields, flags),
        rope=read_rope(raw, head_dim, 1e6 if flags.local_theta else 1e4, "full_attention"),
        local_rope=_local_rope(raw, fields, head_dim) if flags.local_theta else None,
        flags=flags,
    )


def _activation(raw: Raw, flags: Flags) -> str:
    """Gemma 2 and 3 have a field of their own. Gemma 1 says `gelu` and means the tanh approximation."""
    if not flags.gemma:
        return str(raw.get("hidden_act") or "silu")
    named = str(raw.get("hidden_activation" if flags.four_norms else "hidden_act") or "gelu_pytorch_tanh")
    return "gelu_pytorch_tanh" if named == "gelu" and not flags.four_norms else named


def _windows(raw: Raw, fields: _Fields, flags: Flags) -> tuple[Window | None, ...]:
    layers = range(fields.num_hidden_layers)
    kinds = raw.get("layer_types")
    if kinds is not None and len(kinds) != len(layers):
        raise CheckpointError(f"config.json: layer_types has {len(kinds)} entries for {len(layers)} layers.")
    if not fields.sliding_window:
        return (None,) * len(layers)
    return tuple((fields.sliding_window - 1, 0) if flags.windows(raw, i) else None for i in layers)


def _local_rope(raw: Raw, fields: _Fields, head_dim: int) -> RopeConfig:
    """Sliding layers of Gemma 3: in v5 configs under their layer type, before that a plain rope with its own theta."""
    if "sliding_attention" in (raw.get("rope_parameters") or {}):
        return read_rope({**raw, "rope_theta": fields.rope_local_base_freq}, head_dim, layer_type="sliding_attention")
    return RopeConfig(head_dim, fields.rope_local_base_freq, fields.max_position_embeddings)

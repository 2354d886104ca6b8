"""Rotary position embedding (Su et al. 2021) and its scalings, read from v4 and v5 configs. Knows no attention.

Scalings that depend on the length (dynamic, longrope) take each sequence's own, so that a sequence scores the same
alone and packed. Formulas as in transformers' `modeling_rope_utils` (YaRN: Peng et al. 2023; LongRoPE: Ding 2024).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.model import compiled
from assay.model.batch import PackedBatch
from assay.model.norm import RMSNorm


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """One rotary embedding.

    dim: rotated dimensions of a head, the first ones. scaling: the config's own further fields (factor, …).
    max_position_embeddings: the model's, which some scalings refer to.
    """

    dim: int
    theta: float
    max_position_embeddings: int
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _SCALINGS:
            raise CheckpointError(f"config.json has the rope type {self.kind!r}; supported are {', '.join(_SCALINGS)}.")
        for name in _REQUIRED.get(self.kind, ()):
            if self.scaling.get(name) is None:
                raise CheckpointError(f"config.json: rope type {self.kind!r} needs {name}.")
        try:  # what cannot be computed is found here, and not by the first request
            for length in (1, self.max_position_embeddings + 1):
                inv_freq, amplitude = _SCALINGS[self.kind](self, length, torch.device("cpu"))
                if not (inv_freq.isfinite().all() and math.isfinite(amplitude)):
                    raise ValueError("frequencies are not finite numbers")
        except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(f"config.json: rope type {self.kind!r} cannot be computed: {error}.") from error

    @property
    def original_max(self) -> int:
        return int(self.scaling.get("original_max_position_embeddings") or self.max_position_embeddings)

    @property
    def by_length(self) -> bool:
        """Whether a token's turn depends on how long its sequence is."""
        return self.kind in _BY_LENGTH

    @property
    def usable_length(self) -> int:
        """The longest sequence: linear, dynamic and yarn stretch the trained length by their factor, as in vLLM."""
        if self.kind in ("linear", "dynamic", "yarn"):
            trained = self.original_max if self.kind == "yarn" else self.max_position_embeddings
            return max(self.max_position_embeddings, int(trained * float(self.scaling.get("factor") or 1)))
        return self.max_position_embeddings


def read_rope(
    raw: Mapping[str, Any], head_dim: int, default_theta: float = 10000.0, layer_type: str | None = None
) -> RopeConfig:
    """The rotary embedding that config.json describes.

    v4: `rope_theta` and `rope_scaling` (whose `type` is an older name of `rope_type`). v5: `rope_parameters`, theta
    inside; nested by layer type in ModernBERT and Gemma 3, of which `layer_type` picks one.
    """
    parameters: Mapping[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if layer_type is not None and layer_type in parameters:
        parameters = parameters[layer_type]
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"config.json: the rope parameters are {parameters!r}; they must be a JSON object.")
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind in ("su", "yarn") and "short_factor" in parameters:
        kind = "longrope"  # what Phi-3 called it before it had that name
    partial = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1.0
    # Phi-3 keeps the length it was trained at beside rope_scaling, not inside; transformers gives it precedence.
    outer = raw.get("original_max_position_embeddings")
    outside = {} if outer is None else {"original_max_position_embeddings": outer}
    theta = parameters.get("rope_theta") or raw.get("rope_theta") or default_theta
    if not isinstance(theta, int | float):
        raise CheckpointError(f"config.json: rope_theta is {theta!r}; it must be a number.")
    return RopeConfig(
        dim=int(head_dim * partial),
        theta=float(theta),
        max_position_embeddings=int(raw.get("max_position_embeddings") or 0),
        kind=kind,
        scaling=dict(parameters) | outside,
    )


class Rotary(nn.Module):
    """PackedBatch → (cos, sin), each [tokens, dim], float32."""

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        device = batch.position_ids.device
        if not self.config.by_length:
            return _angles(batch.position_ids, *_SCALINGS[self.config.kind](self.config, 0, device))
        parts = [
            _angles(
                batch.position_ids[run.start : run.start + run.count * run.length],
                *_SCALINGS[self.config.kind](self.config, run.length, device),
            )
            for run in batch.runs
        ]
        return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])


def rotate(x: Tensor, cos: Tensor, sin: Tensor, norm: RMSNorm | None = None) -> Tensor:
    """Turn the first dim dimensions of each head; halves are paired (GPT-NeoX order). x: [tokens, heads, head_dim].
    norm: of each head ahead of it (Qwen 3).

    Pass by pass what x * cos + (-right, left) * sin is, without putting that pair together first; bit by bit, but where
    assay's own kernel does it in one pass, and rounds once less. That turns x itself, which nobody is to read after.
    """
    if compiled.supports(x) and (norm is None or compiled.supports(norm.weight)):
        compiled.turn(x, cos, sin, *(() if norm is None else (norm.weight, norm.eps, norm.more)))
        return x
    if norm is not None:
        x = norm(x)
    dim = cos.shape[-1]
    half = dim // 2
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    turned = x[..., :dim] * cos
    across = torch.empty_like(turned)
    torch.mul(x[..., half:dim], -sin[..., :half], out=across[..., :half])
    torch.mul(x[..., :half], sin[..., half:], out=across[..., half:])
    turned += across
    return turned if dim == x.shape[-1] else torch.cat((turned, x[..., dim:]), dim=-1)


def _angles(positions: Tensor, inv_freq: Tensor, amplitude: float) -> tuple[Tensor, Tensor]:
    angles = positions.float()[:, None] * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * amplitude, angles.sin() * amplitude


Frequencies = tuple[Tensor, float]
"""Inverse frequencies [dim / 2] and the factor on cos and sin."""


def _inverse(dim: int, theta: float, device: torch.device) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, device=device).float() / dim)


def _default(config: RopeConfig, length: int, device: torch.device) -> Frequencies:
    return _inverse(config.dim, config.theta, device), 1.0


def _linear(config: RopeConfig, length: int, device: torch.device) -> Frequencies:
    return _inverse(config.dim, config.theta, device) / float(config.scaling["factor"]), 1.0


def _dynamic(config: RopeConfig, length: int, device: torch.device) -> Frequencies:
    """NTK-aware: theta grows with the length once it exceeds the trained one."""
    longest, factor = config.max_position_embeddings, float(config.scaling["factor"])
    length = max(length, longest)
    growth = (factor * length / longest - (factor - 1)) ** (config.dim / (config.dim - 2))
    return _inverse(config.dim, config.theta * growth, device), 1.0


def _yarn(config: RopeConfig, length: int, device: torch.device) -> Frequencies:
    """Fast dimensions keep their frequency, slow ones are interpolated, with a ramp between."""
    scaling, dim = config.scaling, config.dim
    if not (scaling.get("factor") or scaling.get("original_max_position_embeddings")):
        raise CheckpointError("config.json: rope type 'yarn' needs factor.")
    factor = float(scaling.get("factor") or config.max_position_embeddings / config.original_max)

    def dimension(rotations: float) -> float:
        """The dimension that turns this often within the trained length."""
        return dim * math.log(config.original_max / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(float(scaling.get("beta_fast") or 32)), dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = (torch.arange(dim // 2, device=device).float() - low) / width
    interpolated = ramp.clamp(0, 1)
    plain = _inverse(dim, config.theta, device)
    return plain / factor * interpolated + plain * (1 - interpolated), _yarn_amplitude(scaling, factor)


def _yarn_amplitude(scaling: Mapping[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(float(scaling["mscale"])) / mscale(float(scaling["mscale_all_dim"]))
    return mscale(1.0)


def _longrope(config: RopeConfig, length: int, device: torch.device) -> Frequencies:
    """One factor per dimension; one set of them within the trained length, another beyond it."""
    scaling, original = config.scaling, config.original_max
    name = "long_factor" if length > original else "short_factor"
    factors = torch.tensor(scaling[name], dtype=torch.float32, device=device)
    if factors.shape[0] != config.dim // 2:
        raise CheckpointError(f"config.json: rope {name} has {factors.shape[0]} entries, should be {config.dim // 2}.")
    factor = float(scaling.get("factor") or config.max_position_embeddings / original)
    if scaling.get("attention_factor") is not None:
        amplitude = float(scaling["attention_factor"])
    else:
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return _inverse(config.dim, config.theta, device) / factors, amplitude


def _llama3(config: RopeConfig, length: int, device: torch.device) -> Frequencies:
    """Long wavelengths are stretched, short ones kept, the middle blended (Llama 3.1)."""
    scaling = config.scaling
    factor, original = float(scaling["factor"]), config.original_max
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    plain = _inverse(config.dim, config.theta, device)
    turns = original * plain / (2 * math.pi)  # rotations within the trained length
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * blend + plain / factor * (1 - blend), 1.0


_SCALINGS: dict[str, Callable[[RopeConfig, int, torch.device], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
_BY_LENGTH = {"dynamic", "longrope"}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

"""ModernBERT for sequence classification: rotary pre-norm encoder, most layers local (Warner et al. 2024).

Knows no masks: a local layer's window is a pair of numbers that `attention` takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.model.attention import Window, attention
from assay.model.batch import PackedBatch, Rows, pick
from assay.model.blueprint import Blueprint, HeadSpec, Rename, Shapes, num_rows, read_config
from assay.model.embedding import embedding
from assay.model.layer import Shape, TransformerLayer
from assay.model.linear import Linear
from assay.model.mlp import MLP
from assay.model.norm import normed_rows, normed_sum, sum_and_norm
from assay.model.rotary import RopeConfig, Rotary, read_rope, rotate

_POOLS: dict[str, Literal["first", "mean"]] = {"cls": "first", "mean": "mean"}


@dataclass(frozen=True, slots=True)
class ModernBertConfig:
    """config.json. `local_attention`: width of the window, both sides together; `sliding_window`: one side."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 8192
    hidden_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_pooling: str = "cls"
    classifier_activation: str = "gelu"
    classifier_bias: bool = False
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    sliding_window: int = 0
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} is not an even multiple of "
                f"num_attention_heads {self.num_attention_heads}."
            )
        if self.global_attn_every_n_layers < 1:
            raise CheckpointError(
                f"config.json: global_attn_every_n_layers is {self.global_attn_every_n_layers}; it must be at least 1."
            )
        if self.classifier_pooling not in _POOLS:
            raise CheckpointError(
                f"config.json: classifier_pooling is {self.classifier_pooling!r}; supported are {', '.join(_POOLS)}."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def window(self) -> Window:
        reach = self.sliding_window or self.local_attention // 2
        return reach, reach


_LAYER, _OURS = r"model\.layers\.(\d+)\.", r"trunk.layers.\1."
# Checkpoint name → our name.
_RENAMES = (
    Rename(r"model\.embeddings\.tok_embeddings\.weight", "trunk.embeddings.weight"),
    Rename(r"model\.embeddings\.norm\.(weight|bias)", r"trunk.embeddings_norm.\1"),
    Rename(_LAYER + r"(attn|mlp)_norm\.(weight|bias)", _OURS + r"\2_norm.\3"),
    Rename(_LAYER + r"attn\.Wqkv\.(weight|bias)", _OURS + r"qkv.\2"),
    Rename(_LAYER + r"attn\.Wo\.(weight|bias)", _OURS + r"attn_out.\2"),
    Rename(_LAYER + r"mlp\.Wi\.(weight|bias)", _OURS + r"mlp.up.\2"),
    Rename(_LAYER + r"mlp\.Wo\.(weight|bias)", _OURS + r"mlp.down.\2"),
    Rename(r"model\.final_norm\.(weight|bias)", r"trunk.norm.\1"),
    Rename(r"head\.(dense|norm)\.(weight|bias)", r"head.\1.\2"),
    Rename(r"classifier\.(weight|bias)", r"head.out.\1"),
)


def blueprint(architecture: str, raw: Mapping[str, Any], shapes: Shapes) -> Blueprint:
    """Read config.json and the names in the checkpoint; say what to build, and which tensor goes where."""
    config = read_config(ModernBertConfig, raw)
    local = _local_layers(raw, config)
    rope = _rope(raw, config, config.global_rope_theta, "full_attention")
    local_rope = _rope(raw, config, config.local_rope_theta, "sliding_attention")
    return Blueprint(
        trunk=lambda: ModernBertModel(config, local, rope, local_rope),
        head=HeadSpec(
            _POOLS[config.classifier_pooling],
            config.hidden_size,
            num_rows(shapes, "classifier.weight"),
            dense=True,
            dense_bias=config.classifier_bias,
            act=config.classifier_activation,
            norm_eps=config.norm_eps,
            norm_bias=config.norm_bias,
        ),
        renames=_RENAMES,
        vocab_size=config.vocab_size,
        type_vocab_size=0,
        max_positions=rope.usable_length,
    )


def _local_layers(raw: Mapping[str, Any], config: ModernBertConfig) -> tuple[bool, ...]:
    """Which layers are local: v5 configs list them, older ones give the distance between global ones."""
    kinds = raw.get("layer_types")
    if kinds is None:
        return tuple(i % config.global_attn_every_n_layers != 0 for i in range(config.num_hidden_layers))
    if len(kinds) != config.num_hidden_layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(kinds)} entries for {config.num_hidden_layers} layers."
        )
    return tuple(kind == "sliding_attention" for kind in kinds)


def _rope(raw: Mapping[str, Any], config: ModernBertConfig, theta: float, layer_type: str) -> RopeConfig:
    """One theta for global layers and one for local ones; v5 configs have them under their layer type."""
    max_positions = config.max_position_embeddings
    both = {**raw, "rope_theta": theta, "max_position_embeddings": max_positions}
    return read_rope(both, config.head_dim, layer_type=layer_type)


class ModernBertModel(nn.Module):
    """PackedBatch → hidden states [tokens, hidden], or [seqs, hidden] of those rows alone, after the last norm."""

    def __init__(
        self, config: ModernBertConfig, local: tuple[bool, ...], rope: RopeConfig, local_rope: RopeConfig
    ) -> None:
        super().__init__()
        self.embeddings = embedding(config.vocab_size, config.hidden_size)
        self.embeddings_norm = _norm(config)
        self.rotary, self.local_rotary = Rotary(rope), Rotary(local_rope)
        self.layers = nn.ModuleList(
            ModernBertLayer(config, config.window if is_local else None, first=i == 0)
            for i, is_local in enumerate(local)
        )
        self.norm = _norm(config)

    def forward(self, batch: PackedBatch, rows: Rows | None = None) -> Tensor:
        x = normed_rows(self.embeddings_norm, (self.embeddings, batch.input_ids))
        turn, local_turn = self.rotary(batch), self.local_rotary(batch)
        more: Tensor | None = None
        for i, layer in enumerate(self.layers, 1):
            is_last = i == len(self.layers)
            x, more = layer(x, more, batch, turn if layer.window is None else local_turn, rows if is_last else None)
        assert more is not None
        return normed_sum(self.norm, x, more)


class ModernBertLayer(TransformerLayer):
    """Two sums, each of what was normed before; the first layer takes the embeddings as they are, normed already.

    Each is done with the norm that follows it: a layer begins with what the last one has left to add, and leaves more.
    """

    def __init__(self, config: ModernBertConfig, window: Window | None, first: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.shape = Shape(heads, heads, head_dim, head_dim**-0.5, after=False, window=window)
        self.attn_norm = nn.Identity() if first else _norm(config)
        self.qkv = Linear(hidden, 3 * hidden, config.attention_bias)
        self.attn_out = Linear(hidden, hidden, config.attention_bias)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_activation, config.mlp_bias, gated=True)

    def forward(
        self,
        x: Tensor,
        more: Tensor | None,
        batch: PackedBatch,
        turn: tuple[Tensor, Tensor],
        rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.joined is not None:
            return self.joined(x, batch, rows, more, turn)
        x, normed = sum_and_norm(self.attn_norm, x, more)
        x, normed = sum_and_norm(self.mlp_norm, pick(x, batch, rows), self.attend(normed, batch, turn, rows))
        return x, self.mlp(normed)

    def attend(self, x: Tensor, batch: PackedBatch, turn: tuple[Tensor, Tensor], rows: Rows | None) -> Tensor:
        heads = self.shape.heads
        qk, v = self.qkv(x).view(x.shape[0], 3 * heads, -1).split((2 * heads, heads), dim=1)
        q, k = rotate(qk, *turn).chunk(2, dim=1)
        seen = attention(pick(q, batch, rows), k, v, batch, scale=self.shape.scale, window=self.window, rows=rows)
        out: Tensor = self.attn_out(seen.flatten(1))
        return out


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)

"""BERT for sequence classification: post-norm encoder, learned positions, pooled [CLS] (Devlin et al. 2018).

Does not know relative positions: configs that ask for them are refused, since transformers 5 ignores them in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.model.attention import attention
from assay.model.batch import PackedBatch
from assay.model.blueprint import Blueprint, HeadSpec, Rename, Shapes, num_rows, read_config
from assay.model.linear import Linear
from assay.model.mlp import MLP


@dataclass(frozen=True, slots=True)
class BertConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}."
            )


# Checkpoint name → our name. Parts of one fused matrix share a target and are joined in the order given.
_RENAMES = (
    Rename(r"bert\.embeddings\.(word|position|token_type)_embeddings\.weight", r"trunk.\1_embeddings.weight"),
    Rename(r"bert\.embeddings\.LayerNorm\.(weight|bias)", r"trunk.norm.\1"),
    Rename(
        r"bert\.encoder\.layer\.(\d+)\.attention\.self\.(?P<part>query|key|value)\.(weight|bias)",
        r"trunk.layers.\1.qkv.\3",
        parts=("query", "key", "value"),
    ),
    Rename(r"bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"trunk.layers.\1.attn_out.\2"),
    Rename(
        r"bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(weight|bias)", r"trunk.layers.\1.attn_norm.\2"
    ),
    Rename(r"bert\.encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"trunk.layers.\1.mlp.up.\2"),
    Rename(r"bert\.encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"trunk.layers.\1.mlp.down.\2"),
    Rename(r"bert\.encoder\.layer\.(\d+)\.output\.LayerNorm\.(weight|bias)", r"trunk.layers.\1.mlp_norm.\2"),
    Rename(r"bert\.pooler\.dense\.(weight|bias)", r"head.dense.\1"),
    Rename(r"classifier\.(weight|bias)", r"head.out.\1"),
)


def blueprint(architecture: str, raw: Mapping[str, Any], shapes: Shapes) -> Blueprint:
    """Read config.json and the names in the checkpoint; say what to build, and which tensor goes where."""
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise CheckpointError(f"config.json asks for position_embedding_type {positions!r}; supported is 'absolute'.")
    config = read_config(BertConfig, raw)
    return Blueprint(
        trunk=lambda: BertModel(config),
        head=HeadSpec("first", config.hidden_size, num_rows(shapes, "classifier.weight"), dense=True, act="tanh"),
        renames=_RENAMES,
        vocab_size=config.vocab_size,
        type_vocab_size=config.type_vocab_size,
        max_positions=config.max_position_embeddings,
    )


class BertModel(nn.Module):
    """PackedBatch → hidden states [tokens, hidden]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, batch: PackedBatch) -> Tensor:
        x: Tensor = self.word_embeddings(batch.input_ids)
        x = x + self.token_type_embeddings(batch.token_type_ids) + self.position_embeddings(batch.position_ids)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, batch)
        return x


class BertLayer(nn.Module):
    """Two sums, each followed by its norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.attn_out = Linear(config.hidden_size, config.hidden_size)
        self.attn_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        x = self.attn_norm(x + self.attend(x, batch))
        out: Tensor = self.mlp_norm(x + self.mlp(x))
        return out

    def attend(self, x: Tensor, batch: PackedBatch) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1).unbind(1)
        out: Tensor = self.attn_out(attention(q, k, v, batch, scale=self.scale).flatten(1))
        return out

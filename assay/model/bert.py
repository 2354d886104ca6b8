"""BERT and its kin: post-norm encoders with learned positions and a head on the first token, by a table of families.

Knows no relative positions and no causal mask: configs that ask for them are refused, never scored otherwise.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.model.attention import attention
from assay.model.batch import PackedBatch, Rows, pick
from assay.model.blueprint import Blueprint, HeadSpec, Rename, Shapes, num_rows, read_config
from assay.model.embedding import embedding
from assay.model.layer import Shape, TransformerLayer
from assay.model.linear import Linear
from assay.model.mlp import MLP
from assay.model.norm import normed_rows, normed_sum

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """config.json, in BERT's spelling. Fields from `embedding_size` on are read only where the family has them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2  # 0: the model has no token types
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    embedding_size: int = 0  # 0: hidden_size
    always_project: bool = False  # from embedding_size to hidden_size, even where they are equal
    num_hidden_groups: int = 0  # layers of one group share their weights; 0: every layer has its own
    inner_group_num: int = 1
    pad_token_id: int = 0
    positions_after_pad: bool = False  # the first token stands at pad_token_id + 1

    def __post_init__(self) -> None:
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}."
            )
        if self.usable_length < 1:
            raise CheckpointError(
                f"config.json: max_position_embeddings {self.max_position_embeddings} leaves no position after "
                f"pad_token_id {self.pad_token_id}."
            )

    @property
    def usable_length(self) -> int:
        """The longest sequence that can be numbered: 512 of RoBERTa's 514 positions."""
        return self.max_position_embeddings - (self.pad_token_id + 1 if self.positions_after_pad else 0)

    @property
    def layer_order(self) -> tuple[int, ...]:
        """Which weights each step uses: 0, 1, 2, … without groups; the float quotient is what ALBERT trained with."""
        groups = self.num_hidden_groups or self.num_hidden_layers
        steps = (int(i / (self.num_hidden_layers / groups)) for i in range(self.num_hidden_layers))
        return tuple(group * self.inner_group_num + i for group in steps for i in range(self.inner_group_num))


@dataclass(frozen=True, slots=True)
class Names:
    """How a checkpoint spells its layers: their prefix, the three projections, and our name → theirs for the rest."""

    layer: str
    qkv: tuple[str, str, str]
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family differs from BERT.

    prefix: of the trunk's tensors. head: first token → dense → act → out, as (dense's name, act, out's name).
    project: the name of the matrix from embedding_size to hidden_size.
    defaults: config fields that may be missing, and those that BERT lacks. renamed: our field → theirs.
    fixed: fields that no config changes.
    """

    prefix: str
    names: Names
    head: tuple[str, str, str]
    project: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


_BERT_NAMES = Names(
    layer="encoder.layer",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    parts={
        "attn_out": "attention.output.dense",
        "attn_norm": "attention.output.LayerNorm",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    },
)
_ALBERT_NAMES = Names(
    layer="encoder.albert_layer_groups",
    qkv=("attention.query", "attention.key", "attention.value"),
    parts={
        "attn_out": "attention.dense",
        "attn_norm": "attention.LayerNorm",
        "mlp.up": "ffn",
        "mlp.down": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    },
)
_DISTILBERT_NAMES = Names(
    layer="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    parts={
        "attn_out": "attention.out_lin",
        "attn_norm": "sa_layer_norm",
        "mlp.up": "ffn.lin1",
        "mlp.down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    },
)


def _sizes(vocab: int, hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    """What transformers assumes where a config leaves it out."""
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": 512,
    }


FAMILIES = {
    "bert": Family("bert", _BERT_NAMES, ("bert.pooler.dense", "tanh", "classifier")),
    "roberta": Family(
        "roberta",
        _BERT_NAMES,
        ("classifier.dense", "tanh", "classifier.out_proj"),
        defaults={"pad_token_id": 1},
        fixed={"positions_after_pad": True},
    ),
    "electra": Family(
        "electra",
        _BERT_NAMES,
        ("classifier.dense", "gelu", "classifier.out_proj"),
        project="embeddings_project",
        defaults={**_sizes(30522, 256, 12, 4, 1024), "embedding_size": 128},
    ),
    "albert": Family(
        "albert",
        _ALBERT_NAMES,
        ("albert.pooler", "tanh", "classifier"),
        project="encoder.embedding_hidden_mapping_in",
        defaults={
            **_sizes(30000, 4096, 12, 64, 16384),
            "embedding_size": 128,
            "hidden_act": "gelu_new",
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        },
        fixed={"always_project": True},
    ),
    "distilbert": Family(
        "distilbert",
        _DISTILBERT_NAMES,
        ("pre_classifier", "relu", "classifier"),
        renamed={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        defaults=_sizes(30522, 768, 6, 12, 3072),
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
    ),
}

# Architecture → family. XLM-RoBERTa and CamemBERT are RoBERTa in all but vocabulary, down to their tensors' names.
ARCHITECTURES = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
    "CamembertForSequenceClassification": "roberta",
    "ElectraForSequenceClassification": "electra",
    "AlbertForSequenceClassification": "albert",
    "DistilBertForSequenceClassification": "distilbert",
}
_FIELDS_OF_ALL = {f.name for f in fields(BertConfig)[:9]}


def read_bert(raw: Raw, family: Family) -> BertConfig:
    """config.json of one of these families. Raises CheckpointError for what is missing, mistyped or not computed."""
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise CheckpointError(f"config.json asks for position_embedding_type {positions!r}; supported is 'absolute'.")
    if raw.get("is_decoder"):
        raise CheckpointError("config.json sets is_decoder, so tokens see only those before them; not supported here.")
    values = dict(family.defaults)
    for name in _FIELDS_OF_ALL | family.defaults.keys():
        value = raw.get(family.renamed.get(name, name))
        if value is not None:
            values[name] = value
    return read_config(BertConfig, values | dict(family.fixed))


def _renames(config: BertConfig, family: Family) -> tuple[Rename, ...]:
    """Checkpoint name → our name. Parts of one fused matrix share a target and are joined in the order given."""
    kind = r"\.(?P<kind>weight|bias)"
    embeddings = rf"{family.prefix}\.embeddings\."
    dense, _, out = family.head
    rules = [
        Rename(embeddings + r"(word|position|token_type)_embeddings\.weight", r"trunk.\1_embeddings.weight"),
        Rename(embeddings + "LayerNorm" + kind, r"trunk.norm.\g<kind>"),
        Rename(re.escape(dense) + kind, r"head.dense.\g<kind>"),
        Rename(re.escape(out) + kind, r"head.out.\g<kind>"),
    ]
    if family.project:
        rules.append(Rename(re.escape(f"{family.prefix}.{family.project}") + kind, r"trunk.project.\g<kind>"))
    qkv = f"(?P<part>{'|'.join(map(re.escape, family.names.qkv))})"
    for theirs, ours in _layers(config, family):
        rules.append(Rename(theirs + qkv + kind, ours + r"qkv.\g<kind>", parts=family.names.qkv))
        for part, name in family.names.parts.items():
            rules.append(Rename(theirs + re.escape(name) + kind, rf"{ours}{part}.\g<kind>"))
    return tuple(rules)


def _layers(config: BertConfig, family: Family) -> list[tuple[str, str]]:
    """(a pattern for the prefix of a layer, our prefix). ALBERT counts by group and place; we count through."""
    stack = re.escape(f"{family.prefix}.{family.names.layer}.")
    if not config.num_hidden_groups:
        return [(stack + r"(?P<layer>\d+)\.", r"trunk.layers.\g<layer>.")]
    inner = config.inner_group_num
    return [
        (stack + rf"{group}\.albert_layers\.{i}\.", f"trunk.layers.{group * inner + i}.")
        for group in range(config.num_hidden_groups)
        for i in range(inner)
    ]


def blueprint(architecture: str, raw: Raw, shapes: Shapes) -> Blueprint:
    """Read config.json and the names in the checkpoint; say what to build, and which tensor goes where."""
    family = FAMILIES[ARCHITECTURES[architecture]]
    config = read_bert(raw, family)
    _, act, out = family.head
    head = HeadSpec("first", config.hidden_size, num_rows(shapes, f"{out}.weight"), dense=True, act=act)
    return Blueprint(
        trunk=lambda: BertModel(config),
        head=head,
        renames=_renames(config, family),
        vocab_size=config.vocab_size,
        type_vocab_size=config.type_vocab_size,
        max_positions=config.usable_length,
    )


class BertModel(nn.Module):
    """PackedBatch → hidden states [tokens, hidden], or [seqs, hidden] of those rows alone."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.embedding_size or config.hidden_size
        projects = config.always_project or size != config.hidden_size
        self.pad_token_id = config.pad_token_id if config.positions_after_pad else None
        self.word_embeddings = embedding(config.vocab_size, size)
        self.position_embeddings = embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.project = Linear(size, config.hidden_size) if projects else nn.Identity()
        self.order = config.layer_order
        unshared = (config.num_hidden_groups or config.num_hidden_layers) * config.inner_group_num
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(unshared))

    def forward(self, batch: PackedBatch, rows: Rows | None = None) -> Tensor:
        x: Tensor = self.project(normed_rows(self.norm, *self.embeddings(batch)))
        for i in self.order[:-1]:
            x = self.layers[i](x, batch)
        last: Tensor = self.layers[self.order[-1]](x, batch, rows)
        return last

    def embeddings(self, batch: PackedBatch) -> Iterator[tuple[nn.Embedding, Tensor]]:
        """Tables whose rows are summed, each with its ids. Where there is but one token type, all tokens are of it."""
        yield self.word_embeddings, batch.input_ids
        if self.token_type_embeddings is not None:
            one = self.token_type_embeddings.num_embeddings == 1
            yield self.token_type_embeddings, torch.zeros_like(batch.token_type_ids) if one else batch.token_type_ids
        positions = batch.position_ids if self.pad_token_id is None else positions_after(self.pad_token_id, batch)
        yield self.position_embeddings, positions


def positions_after(pad_token_id: int, batch: PackedBatch) -> Tensor:
    """fairseq's positions, [tokens]: counted from pad_token_id + 1; a pad token in a text is not counted, and stands
    at pad_token_id itself."""
    counts = (batch.input_ids != pad_token_id).long()
    seen = counts.cumsum(0)
    first = torch.arange(batch.num_tokens, device=seen.device) - batch.position_ids  # each token's sequence's start
    return (seen - (seen - counts)[first]) * counts + pad_token_id


class BertLayer(TransformerLayer):
    """Two sums, each followed by its norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.shape = Shape(heads, heads, head_dim, head_dim**-0.5, after=True)
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.attn_out = Linear(config.hidden_size, config.hidden_size)
        self.attn_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, batch: PackedBatch, rows: Rows | None = None) -> Tensor:
        if self.joined is not None:
            return self.joined(x, batch, rows)[1]
        x = normed_sum(self.attn_norm, pick(x, batch, rows), self.attend(x, batch, rows))
        return normed_sum(self.mlp_norm, x, self.mlp(x))

    def attend(self, x: Tensor, batch: PackedBatch, rows: Rows | None) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.shape.heads, -1).unbind(1)
        seen = attention(pick(q, batch, rows), k, v, batch, scale=self.shape.scale, rows=rows)
        out: Tensor = self.attn_out(seen.flatten(1))
        return out

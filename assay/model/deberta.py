"""DeBERTa v2 and v3 for sequence classification: disentangled attention over a packed batch (He et al. 2021).

Knows no padding and no mask: a score is made of two contents and their distance, and a sequence sees only itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from assay.errors import CheckpointError
from assay.model.activation import activation
from assay.model.attention import attention
from assay.model.batch import PackedBatch, Rows, pick
from assay.model.blueprint import Blueprint, HeadSpec, Rename, Shapes, num_rows, read_config
from assay.model.compiled import MARGIN
from assay.model.disentangled import disentangled_attention
from assay.model.embedding import embedding
from assay.model.layer import Shape, TransformerLayer
from assay.model.linear import Linear
from assay.model.mlp import MLP
from assay.model.norm import normed_rows, normed_sum


@dataclass(frozen=True, slots=True)
class DebertaConfig:
    """config.json. `pos_att_type`: "c2p", "p2c", both joined by "|", or neither. `embedding_size` 0: hidden_size."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    embedding_size: int = 0
    hidden_act: str = "gelu"
    pooler_hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-7
    position_biased_input: bool = True
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    share_att_key: bool = False
    pos_att_type: str = ""
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"

    def __post_init__(self) -> None:
        hidden = self.hidden_size
        if hidden % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.conv_kernel_size > 0 and (self.conv_kernel_size % 2 == 0 or hidden % self.conv_groups):
            raise CheckpointError(
                f"config.json: conv_kernel_size {self.conv_kernel_size} is even, or conv_groups {self.conv_groups} "
                f"does not divide hidden_size {hidden}."
            )
        if self.position_buckets > 0 and not 1 <= self.position_buckets // 2 < self.max_distance - 1:
            raise CheckpointError(
                f"config.json: position_buckets is {self.position_buckets}; it must be at least 2, and half of it "
                f"less than the largest relative position {self.max_distance - 1}."
            )

    @property
    def max_distance(self) -> int:
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Relative embeddings on either side of zero."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance

    def scores_by(self, kind: str) -> bool:
        return kind in (part.strip() for part in self.pos_att_type.lower().split("|"))


_LAYER, _OURS = r"deberta\.encoder\.layer\.(\d+)\.", r"trunk.layers.\1."
# Checkpoint name → our name. Parts of one fused matrix share a target and are joined in the order given.
_RENAMES = (
    Rename(r"deberta\.embeddings\.(word|position|token_type)_embeddings\.weight", r"trunk.\1_embeddings.weight"),
    Rename(r"deberta\.embeddings\.embed_proj\.weight", "trunk.embed_proj.weight"),
    Rename(r"deberta\.embeddings\.LayerNorm\.(weight|bias)", r"trunk.norm.\1"),
    Rename(r"deberta\.encoder\.rel_embeddings\.weight", "trunk.relative.embeddings.weight"),
    Rename(r"deberta\.encoder\.LayerNorm\.(weight|bias)", r"trunk.relative.norm.\1"),
    Rename(r"deberta\.encoder\.conv\.conv\.(weight|bias)", r"trunk.conv.conv.\1"),
    Rename(r"deberta\.encoder\.conv\.LayerNorm\.(weight|bias)", r"trunk.conv.norm.\1"),
    Rename(
        _LAYER + r"attention\.self\.(?P<part>query|key|value)_proj\.(weight|bias)",
        _OURS + r"qkv.\3",
        parts=("query", "key", "value"),
    ),
    Rename(_LAYER + r"attention\.self\.pos_(key|query)_proj\.(weight|bias)", _OURS + r"pos_\2.\3"),
    Rename(_LAYER + r"attention\.output\.dense\.(weight|bias)", _OURS + r"attn_out.\2"),
    Rename(_LAYER + r"attention\.output\.LayerNorm\.(weight|bias)", _OURS + r"attn_norm.\2"),
    Rename(_LAYER + r"intermediate\.dense\.(weight|bias)", _OURS + r"mlp.up.\2"),
    Rename(_LAYER + r"output\.dense\.(weight|bias)", _OURS + r"mlp.down.\2"),
    Rename(_LAYER + r"output\.LayerNorm\.(weight|bias)", _OURS + r"mlp_norm.\2"),
    Rename(r"pooler\.dense\.(weight|bias)", r"head.dense.\1"),
    Rename(r"classifier\.(weight|bias)", r"head.out.\1"),
)


def blueprint(architecture: str, raw: Mapping[str, Any], shapes: Shapes) -> Blueprint:
    """Read config.json and the names in the checkpoint; say what to build, and which tensor goes where."""
    kinds = raw.get("pos_att_type") or ""
    raw = {**raw, "pos_att_type": kinds if isinstance(kinds, str) else "|".join(map(str, kinds))}
    config = read_config(DebertaConfig, raw)
    hidden = config.hidden_size
    for name, needed in (("pooler_hidden_size", hidden), ("attention_head_size", hidden // config.num_attention_heads)):
        if raw.get(name) not in (None, needed):
            raise CheckpointError(f"config.json: {name} is {raw[name]!r}; hidden_size and heads need {needed}.")
    unused = [] if config.position_biased_input else [Rename(r"deberta\.embeddings\.position_embeddings\.weight", "")]
    unused += [] if config.relative_attention else [Rename(r"deberta\.encoder\.LayerNorm\..*", "")]
    return Blueprint(
        trunk=lambda: DebertaModel(config),
        head=HeadSpec("first", hidden, num_rows(shapes, "classifier.weight"), dense=True, act=config.pooler_hidden_act),
        renames=(*unused, *_RENAMES),
        vocab_size=config.vocab_size,
        type_vocab_size=config.type_vocab_size,
        max_positions=config.max_position_embeddings,
        refused_dtypes=("float16",),  # mDeBERTa's activations exceed 65504
    )


class DebertaModel(nn.Module):
    """PackedBatch → hidden states [tokens, hidden], or [seqs, hidden] of those rows alone."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        hidden, vocab, types = config.hidden_size, config.vocab_size, config.type_vocab_size
        width, biased = config.embedding_size or hidden, config.position_biased_input
        self.word_embeddings = embedding(vocab, width)
        self.position_embeddings = embedding(config.max_position_embeddings, width) if biased else None
        self.token_type_embeddings = embedding(types, width) if types > 0 else None
        self.embed_proj = Linear(width, hidden, bias=False) if width != hidden else None
        self.norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.relative = RelativeEmbeddings(config) if config.relative_attention else None
        self.layers = nn.ModuleList(DebertaLayer(config) for _ in range(config.num_hidden_layers))
        self.conv = ConvLayer(config) if config.conv_kernel_size > 0 else None

    def forward(self, batch: PackedBatch, rows: Rows | None = None) -> Tensor:
        x = embedded = self.embed(batch)
        distances = None if self.relative is None else self.relative(batch)
        x = self.layers[0](x, batch, distances)
        if self.conv is not None:
            x = self.conv(embedded, x, batch)
        for layer in self.layers[1:-1]:
            x = layer(x, batch, distances)
        if len(self.layers) == 1:
            return pick(x, batch, rows)
        last: Tensor = self.layers[-1](x, batch, distances, rows)
        return last

    def embed(self, batch: PackedBatch) -> Tensor:
        tables = [(self.word_embeddings, batch.input_ids)]
        if self.position_embeddings is not None:
            tables.append((self.position_embeddings, batch.position_ids))
        if self.token_type_embeddings is not None:
            tables.append((self.token_type_embeddings, batch.token_type_ids))
        if self.embed_proj is None:
            return normed_rows(self.norm, *tables)
        out: Tensor = self.norm(self.embed_proj(sum(table(ids) for table, ids in tables)))
        return out


class RelativeEmbeddings(nn.Module):
    """One embedding for each bucket of distances, exact near by and logarithmic far away; all layers share them."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.span, self.buckets, self.max_distance = config.span, config.position_buckets, config.max_distance
        self.embeddings = embedding(2 * config.span, config.hidden_size)
        normed = "layer_norm" in (part.strip() for part in config.norm_rel_ebd.lower().split("|"))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if normed else nn.Identity()

    def forward(self, batch: PackedBatch) -> "Distances":
        longest = max(run.length for run in batch.runs)
        distance = torch.arange(1 - longest - MARGIN, longest + MARGIN)
        last = 2 * self.span - 1
        rows = (self._bucket(distance) + self.span).clamp(0, last)
        first, end = int(rows[MARGIN]), int(rows[-MARGIN - 1]) + 1
        if end - first == 2 * longest - 1:  # so near that no two share a row: a view will do
            ascending, descending = slice(first, end + 2 * MARGIN), slice(last + 1 - end, last + 1 - first + 2 * MARGIN)
            return Distances(self, ascending, descending)
        device = batch.input_ids.device
        return Distances(self, (MARGIN + rows).to(device), (MARGIN + last - rows).flip(0).to(device))

    def _bucket(self, distance: Tensor) -> Tensor:
        """Rounded up from float32, as in training: no boundary may move by an ulp."""
        if self.buckets <= 0:
            return distance
        mid = self.buckets // 2
        far = distance.abs().clamp(min=mid)
        share = torch.log(far / mid) / torch.log(torch.tensor((self.max_distance - 1) / mid))
        bucket = torch.ceil(share * (mid - 1)).long() + mid
        return torch.where(distance.abs() <= mid, distance, bucket * distance.sign())


@dataclass(frozen=True, slots=True)
class Distances:
    """Columns of a table of relative embeddings for the distances i - j in a batch, 2 * longest - 1 of them, zero
    midway, and margins: the most negative first, or the most positive first, in the table that is turned around."""

    relative: RelativeEmbeddings
    ascending: Tensor | slice
    descending: Tensor | slice


class DebertaLayer(TransformerLayer):
    """Two sums, each followed by its norm."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        heads, head_dim = config.num_attention_heads, hidden // config.num_attention_heads
        self.c2p, self.p2c = config.scores_by("c2p"), config.scores_by("p2c")
        scale = (head_dim * (1 + self.c2p + self.p2c)) ** -0.5
        self.shape = Shape(heads, heads, head_dim, scale, after=True)
        self.qkv = Linear(hidden, 3 * hidden)
        own = config.relative_attention and not config.share_att_key
        self.pos_key = Linear(hidden, hidden) if own and self.c2p else None
        self.pos_query = Linear(hidden, hidden) if own and self.p2c else None
        self.attn_out = Linear(hidden, hidden)
        self.attn_norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act)
        self.mlp_norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self._positions: tuple[Tensor | None, Tensor | None] | None = None

    def forward(self, x: Tensor, batch: PackedBatch, distances: Distances | None, rows: Rows | None = None) -> Tensor:
        if self.joined is not None:
            return self.joined(x, batch, rows, tables=self.tables(distances))[1]
        x = normed_sum(self.attn_norm, pick(x, batch, rows), self.attend(x, batch, distances, rows))
        return normed_sum(self.mlp_norm, x, self.mlp(x))

    def attend(self, x: Tensor, batch: PackedBatch, distances: Distances | None, rows: Rows | None) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.shape.heads, -1).unbind(1)
        pos_key, pos_query = self.tables(distances)
        if pos_key is None and pos_query is None:
            seen = attention(pick(q, batch, rows), k, v, batch, scale=self.shape.scale, rows=rows)
        else:
            seen = disentangled_attention(q, k, v, pos_key, pos_query, batch, self.shape.scale, rows)
        out: Tensor = self.attn_out(seen.flatten(1))
        return out

    def tables(self, distances: Distances | None) -> tuple[Tensor | None, Tensor | None]:
        """As `disentangled_attention` has them: pos_key and pos_query, of this batch's distances."""
        if distances is None:
            return None, None
        keys, queries = self.positions(distances.relative)
        return (
            None if keys is None else keys[..., distances.descending],
            None if queries is None else queries[..., distances.ascending],
        )

    def positions(self, relative: RelativeEmbeddings) -> tuple[Tensor | None, Tensor | None]:
        """Relative embeddings as keys (turned around) and as queries, each [heads, head_dim, 2 * span] and a margin.

        They depend on weights alone, which do not change once loaded: projected at first use, then kept.
        """
        if self._positions is None:
            table = relative.norm(relative.embeddings.weight)  # distance 0 stands in row `span`
            keys = queries = None
            if self.c2p:
                keys = self._columns(
                    (self.pos_key(table) if self.pos_key else self.qkv(table).chunk(3, dim=1)[1]).flip(0)
                )
            if self.p2c:
                queries = self._columns(self.pos_query(table) if self.pos_query else self.qkv(table).chunk(3, dim=1)[0])
            self._positions = keys, queries
        return self._positions

    def _columns(self, projected: Tensor) -> Tensor:
        return pad(projected.T.reshape(self.shape.heads, -1, len(projected)), (MARGIN, MARGIN))


class ConvLayer(nn.Module):
    """A convolution over each sequence's embeddings [tokens, hidden], added after the first layer (v2-xlarge)."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        hidden, kernel = config.hidden_size, config.conv_kernel_size
        self.conv = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=config.conv_groups)
        self.act = activation(config.conv_act)
        self.norm = nn.LayerNorm(hidden, config.layer_norm_eps)

    def forward(self, embedded: Tensor, x: Tensor, batch: PackedBatch) -> Tensor:
        mixed = torch.empty_like(x)
        for run in batch.runs:
            tokens = slice(run.start, run.start + run.count * run.length)
            seqs = embedded[tokens].view(run.count, run.length, -1).transpose(1, 2)
            mixed[tokens] = self.conv(seqs).transpose(1, 2).flatten(0, 1)
        out: Tensor = self.norm(x + self.act(mixed))
        return out

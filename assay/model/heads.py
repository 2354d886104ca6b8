"""From hidden states to logits to probabilities: pooling and heads, always in float32. Knows nothing of trunks."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import selu

from assay.config import Activation
from assay.model.attention import by_run
from assay.model.batch import PackedBatch, Rows, pick
from assay.model.blueprint import HeadSpec
from assay.model.linear import Linear


def _mean(hidden: Tensor, batch: PackedBatch) -> Tensor:
    seqs = [by_run(hidden[:, None], run)[:, 0].float().mean(dim=1) for run in batch.runs]
    return torch.cat(seqs)


# hidden [tokens, hidden] → [seqs, hidden]
POOLS: dict[str, Callable[[Tensor, PackedBatch], Tensor]] = {
    "first": partial(pick, rows="first"),
    "last": partial(pick, rows="last"),
    "mean": _mean,
}


class Head(nn.Module):
    """pool → dense → act → norm → out: hidden [tokens, hidden] → logits [seqs, labels], always in float32.

    rows: the only rows that it reads, which is what it then wants: [seqs, hidden]. None: it pools all of them itself.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        size = spec.hidden_size
        self.pool = POOLS[spec.pool]
        self.rows = _rows(spec)
        self.dense = Linear(size, size, spec.dense_bias, spec.act) if spec.dense else nn.Identity()
        self.norm = nn.Identity() if spec.norm_eps is None else nn.LayerNorm(size, spec.norm_eps, bias=spec.norm_bias)
        self.out = Linear(size, spec.num_labels, spec.out_bias)

    def forward(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        pooled = self.pool(hidden, batch) if self.rows is None else hidden
        logits: Tensor = self.out(self.norm(self.dense(pooled.float())))
        return logits


class GatedHead(nn.Module):
    """URM's reward (Lou et al. 2024): scores are pairs (mean, uncertainty); the means, weighted by a gate, are summed.

    hidden [tokens, hidden], or [seqs, hidden] with `rows` as in Head → [seqs, 1], in float32.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        sizes = (spec.hidden_size, *spec.gate)
        self.pool = POOLS[spec.pool]
        self.rows = _rows(spec)
        self.out = Linear(spec.hidden_size, 2 * spec.gate[-1], spec.out_bias)
        self.gate = nn.ModuleList(Linear(*pair) for pair in pairwise(sizes))

    def forward(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        pooled = (self.pool(hidden, batch) if self.rows is None else hidden).float()
        weights = pooled
        for i, layer in enumerate(self.gate):
            weights = layer(selu(weights) if i else weights)
        means: Tensor = self.out(pooled)[:, 0::2]
        return (means * weights).sum(dim=-1, keepdim=True)


def _rows(spec: HeadSpec) -> Rows | None:
    return None if spec.pool == "mean" else spec.pool


def build_head(spec: HeadSpec) -> Head | GatedHead:
    """The head that a spec describes."""
    return GatedHead(spec) if spec.gate else Head(spec)


class TextClassifier(nn.Module):
    """A trunk and its head: PackedBatch → logits [seqs, labels], float32.

    The trunk computes its last layer only for the rows that the head reads. shares_prefixes: as the blueprint says.
    """

    def __init__(self, trunk: nn.Module, head: Head | GatedHead, shares_prefixes: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.shares_prefixes = shares_prefixes

    def forward(self, batch: PackedBatch) -> Tensor:
        logits: Tensor = self.head(self.trunk(batch, self.head.rows), batch)
        return logits


def activate(logits: Tensor, kind: Activation, apart: bool = False) -> Tensor:
    """logits [seqs, labels] → probabilities, same shape. Softmax shifts by the row's maximum, so none overflows.

    apart: row by row, since a vector's lanes and what is left over at its end may be rounded differently.
    """
    if apart:
        return torch.cat([activate(row, kind) for row in torch.split(logits, 1)])
    match kind:
        case "none":
            return logits
        case "softmax":
            return torch.softmax(logits, dim=-1)
        case "sigmoid":
            return torch.sigmoid(logits)

"""From hidden states to logits to probabilities: pooling and heads, always in float32. Knows nothing of trunks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from assay.config import Activation
from assay.model.batch import PackedBatch
from assay.model.blueprint import HeadSpec
from assay.model.linear import Linear
from assay.model.mlp import activation


def _first_token(hidden: Tensor, batch: PackedBatch) -> Tensor:
    return hidden[batch.cu_seqlens[:-1]]


# hidden [tokens, hidden] → [seqs, hidden]
POOLS: dict[str, Callable[[Tensor, PackedBatch], Tensor]] = {"first": _first_token}


class Head(nn.Module):
    """pool → dense → act → out: hidden [tokens, hidden] → logits [seqs, labels], always in float32."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.pool = POOLS[spec.pool]
        self.dense = Linear(spec.hidden_size, spec.hidden_size)
        self.act = activation(spec.act)
        self.out = Linear(spec.hidden_size, spec.num_labels)

    def forward(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        logits: Tensor = self.out(self.act(self.dense(self.pool(hidden, batch).float())))
        return logits


class TextClassifier(nn.Module):
    """A trunk and its head: PackedBatch → logits [seqs, labels], float32."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, batch: PackedBatch) -> Tensor:
        logits: Tensor = self.head(self.trunk(batch), batch)
        return logits


def activate(logits: Tensor, kind: Activation) -> Tensor:
    """logits [seqs, labels] → probabilities, same shape. Softmax shifts by the row's maximum, so none overflows."""
    match kind:
        case "none":
            return logits
        case "softmax":
            return torch.softmax(logits, dim=-1)
        case "sigmoid":
            return torch.sigmoid(logits)

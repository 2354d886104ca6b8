"""Attention over a packed batch, one signature for every model. No sequence sees another; knows no projections."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from assay.model.batch import PackedBatch


def attention(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, *, scale: float) -> Tensor:
    """Bidirectional attention within each sequence.

    q, k, v: [tokens, heads, head_dim]; returns [tokens, heads, head_dim].
    Each run of equal-length sequences is one dense call, so that no token is padding and no mask is built.
    """
    out = torch.empty_like(q)
    for run in batch.runs:
        tokens = slice(run.start, run.start + run.count * run.length)
        shape = (run.count, run.length, *q.shape[1:])
        dense = scaled_dot_product_attention(
            q[tokens].view(shape).transpose(1, 2),
            k[tokens].view(shape).transpose(1, 2),
            v[tokens].view(shape).transpose(1, 2),
            scale=scale,
        )
        out[tokens].view(shape).copy_(dense.transpose(1, 2))
    return out

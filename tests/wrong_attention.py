"""Attention broken on purpose, for the tests that show that a tolerance would notice."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from assay.model.attention import attention
from assay.model.batch import PackedBatch, Rows, Run


def leaking(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, *, rows: Rows | None = None, **options: Any) -> Tensor:
    """Every token sees the whole batch. One query a sequence is asked by itself, so that each has its answer."""
    whole = replace(batch, runs=(Run(0, 1, batch.num_tokens),))
    if rows is None:
        return attention(q, k, v, whole, **options)
    return torch.cat([attention(query, k, v, whole, rows="first", **options) for query in q.split(1)])


def wrongly_scaled(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, *, scale: float, **options: Any) -> Tensor:
    return attention(q, k, v, batch, scale=1.0, **options)

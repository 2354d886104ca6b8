"""Norms: by the root mean square, with statistics in float32; of a sum, in one pass. Knows no layer."""

import torch
from torch import Tensor, nn

from assay.model import compiled


class RMSNorm(nn.Module):
    """x / rms(x), scaled by w (Llama: after rounding to x's dtype) or by 1 + w (Gemma: before it)."""

    def __init__(self, dim: int, eps: float, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.eps = eps
        self.plus_one = plus_one

    def forward(self, x: Tensor) -> Tensor:
        if compiled.supports(x) and compiled.supports(self.weight):
            return compiled.normalize(x, self.weight, self.eps, 1.0 if self.plus_one else 0.0)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.plus_one:
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)


def normed_sum(norm: nn.LayerNorm, a: Tensor, b: Tensor) -> Tensor:
    """norm(a + b), of [rows, size]."""
    if compiled.supports(a) and compiled.supports(norm.weight):
        return compiled.normalize_sum(a, b, norm.weight, norm.bias, norm.eps)
    out: Tensor = norm(a + b)
    return out

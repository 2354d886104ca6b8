"""Norms: by the root mean square, with statistics in float32; of sums, in one pass with them. Knows no layer."""

import torch
from torch import Tensor, nn

from assay.model import compiled


class RMSNorm(nn.Module):
    """x / rms(x), scaled by w (Llama: after rounding to x's dtype) or by 1 + w (Gemma: before it)."""

    def __init__(self, dim: int, eps: float, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.eps = eps
        self.more = 1.0 if plus_one else 0.0  # on top of w

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and compiled.supports(x) and compiled.supports(self.weight):
            return compiled.normalize(x, self.weight, self.eps, self.more)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.more:
            return (wide * (self.more + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)


def normed_sum(norm: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """norm(a + b), of [rows, size]."""
    normed = _in_one_pass(norm, a, b, keep=False)
    return norm(a + b) if normed is None else normed


def sum_and_norm(norm: nn.Module, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """a + b, or a, and the norm of it, of [rows, size]. The sum may take a's place, which nobody is to read after."""
    if b is None:
        return a, norm(a)
    normed = _in_one_pass(norm, a, b, keep=True)
    if normed is not None:
        return a, normed
    total = a + b
    return total, norm(total)


def normed_rows(norm: nn.Module, *tables: tuple[nn.Embedding, Tensor]) -> Tensor:
    """norm of the sum of what each table has for its ids [rows]: [rows, size]."""
    weights = [table.weight for table, _ in tables]
    if isinstance(norm, nn.LayerNorm) and all(map(compiled.supports, (*weights, norm.weight))):
        ids = (ids for _, ids in tables)
        return compiled.embed(list(zip(weights, ids, strict=True)), norm.weight, norm.bias, norm.eps)
    total: Tensor = sum(table(ids) for table, ids in tables)
    out: Tensor = norm(total)
    return out


def _in_one_pass(norm: nn.Module, a: Tensor, b: Tensor, keep: bool) -> Tensor | None:
    """norm(a + b), where there is a kernel for it. keep: a becomes the sum."""
    if not (isinstance(norm, nn.LayerNorm | RMSNorm) and compiled.supports(a) and compiled.supports(norm.weight)):
        return None
    if isinstance(norm, RMSNorm):
        return compiled.normalize_sum(a, b, norm.weight, None, norm.eps, centred=False, more=norm.more, keep=keep)
    return compiled.normalize_sum(a, b, norm.weight, norm.bias, norm.eps, keep=keep)

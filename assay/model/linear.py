"""The one place where a weight matrix is multiplied. Knows nothing of what the product means."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Linear(nn.Module):
    """y = x Wᵀ + b, with W [out_features, in_features] as checkpoints store it. Filled by the loader."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

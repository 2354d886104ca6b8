"""Where a weight matrix is multiplied: plainly, or with the kernel that it is given once it is filled.

Knows nothing of what a product means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from assay.model.activation import activation
from assay.model.kernels import Kernel, Plain, fastest
from assay.model.room import Room


class Linear(nn.Module):
    """act(x Wᵀ + b), with W [out_features, in_features] as checkpoints store it. Filled by the loader.

    gated: act(x Gᵀ + b) * (x Uᵀ + b), with G and U in one W [2 * out_features, in_features] (Shazeer 2020).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, act: str | None = None, gated: bool = False
    ) -> None:
        super().__init__()
        rows = 2 * out_features if gated else out_features
        self.weight: Tensor | None = nn.Parameter(torch.empty(rows, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None
        self.act, self.gated = act, gated
        if act is not None:
            activation(act)  # an unknown one is told before anything is loaded
        self.kernel: Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x)
        assert self.weight is not None
        return Plain(self.weight, self.bias, self.act, self.gated)(x)

    def prepare(self, make: Callable[[Tensor, Tensor | None, str | None, bool], Kernel | None]) -> Kernel | None:
        """Compute with this kernel from now on, if there is one. The weights are its own then, and no parameter's.

        make: (weight, bias, activation, whether it is gated) → the kernel, or None for the plain one.
        """
        assert self.weight is not None, "it is prepared once"
        self.kernel = make(self.weight, self.bias, self.act, self.gated)
        if self.kernel is not None:
            self.weight = self.bias = None
        return self.kernel


class Block(nn.Module):
    """Several products and what lies between them."""

    def join(self) -> None:
        """Its products have their kernels now: compute all of it in one call from now on, if those have one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """recurring, alike: whether any, and whether all of a model's products are, as model/kernels.py has it."""

    recurring: bool
    alike: bool


class Preparation:
    """Gives each product of a model that is being filled the fastest kernel that its weights and this machine allow.

    int8: in the trunk, whose weights are float32; the head stays as it is. deterministic: of kernels that treat any
    number of rows alike, where there are. room: what weights lie in.
    """

    def __init__(self, int8: bool = False, deterministic: bool = False) -> None:
        self._int8, self._deterministic = int8, deterministic
        self.room = Room()
        self._kernels: list[Kernel | None] = []

    def take(self, name: str, part: nn.Module) -> None:
        """A part of the model that has its parameters now."""
        if isinstance(part, Linear):
            int8 = self._int8 and name.partition(".")[0] != "head"
            kernel = part.prepare(partial(fastest, int8=int8, alike=self._deterministic, room=self.room))
            self._kernels.append(kernel)

    def end(self, model: nn.Module) -> Prepared:
        """All parts have theirs."""
        for part in model.modules():
            if isinstance(part, Block):
                part.join()
        made = [kernel for kernel in self._kernels if kernel is not None]
        alike = len(made) == len(self._kernels) and all(kernel.alike for kernel in made)
        return Prepared(any(kernel.recurring for kernel in made), alike)

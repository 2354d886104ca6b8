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

Make = Callable[[Tensor, Tensor | None, str | None], Kernel | None]
"""(weight, bias, activation) → the kernel that computes with them, or None for the plain one."""


class Linear(nn.Module):
    """act(x Wᵀ + b), with W [out_features, in_features] as checkpoints store it. Filled by the loader."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, act: str | None = None) -> None:
        super().__init__()
        self.weight: Tensor | None = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.act = act
        if act is not None:
            activation(act)  # an unknown one is told before anything is loaded
        self.kernel: Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x)
        assert self.weight is not None
        return Plain(self.weight, self.bias, self.act)(x)

    def prepare(self, make: Make) -> list[Kernel]:
        """Compute with a kernel of this kind from now on. The weights are the kernel's then, and no parameter's."""
        assert self.weight is not None, "it is prepared once"
        self.kernel = make(self.weight, self.bias, self.act)
        if self.kernel is None:
            return []
        self.weight = self.bias = None
        return [self.kernel]


class Block(nn.Module):
    """Several products and what lies between them."""

    def join(self) -> None:
        """Its products have their kernels now: compute all of it in one call from now on, if those have one."""


class GatedLinear(nn.Module):
    """act(x Gᵀ) * (x Uᵀ), biases aside, with G and U in one matrix [2 * out_features, in_features] (Shazeer 2020)."""

    def __init__(self, in_features: int, out_features: int, bias: bool, act: str) -> None:
        super().__init__()
        self.weight: Tensor | None = nn.Parameter(torch.empty(2 * out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(2 * out_features), requires_grad=False) if bias else None
        self.act = act
        activation(act)
        self._kernels: tuple[Kernel, Kernel] | None = None

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self._kernels or self._make(Plain)
        assert gate is not None
        assert up is not None
        return up(x, times=gate(x))

    def prepare(self, make: Make) -> list[Kernel]:
        """As Linear's."""
        gate, up = self._make(make)
        if gate is None or up is None:
            return []
        self._kernels = gate, up
        self.weight = self.bias = None
        return [gate, up]

    def _make(self, make: Make) -> tuple[Kernel | None, Kernel | None]:
        assert self.weight is not None
        gate, up = self.weight.chunk(2)
        gate_bias, up_bias = (None, None) if self.bias is None else self.bias.chunk(2)
        return make(gate, gate_bias, self.act), make(up, up_bias, None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """recurring, alike: whether any, and whether all of a model's products are, as model/kernels.py has it."""

    recurring: bool
    alike: bool


class Preparation:
    """Gives each product of a model that is being filled the fastest kernel that its weights and this machine allow.

    int8: in the trunk, whose weights are float32; the head stays as it is. deterministic: of kernels that treat any
    number of rows alike, where there are.
    """

    def __init__(self, int8: bool = False, deterministic: bool = False) -> None:
        self._int8, self._deterministic = int8, deterministic
        self._room = Room()
        self._kernels: list[Kernel] = []
        self._plain = False

    def take(self, name: str, part: nn.Module) -> None:
        """A part of the model that has its parameters now."""
        if isinstance(part, Linear | GatedLinear):
            int8 = self._int8 and name.partition(".")[0] != "head"
            made = part.prepare(partial(fastest, int8=int8, alike=self._deterministic, room=self._room))
            self._kernels += made
            self._plain = self._plain or not made

    def end(self, model: nn.Module) -> Prepared:
        """All parts have theirs."""
        self._room.settle()
        for part in model.modules():
            if isinstance(part, Block):
                part.join()
        alike = not self._plain and all(kernel.alike for kernel in self._kernels)
        return Prepared(any(kernel.recurring for kernel in self._kernels), alike)

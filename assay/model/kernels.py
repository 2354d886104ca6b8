"""How act(x Wᵀ + b) is computed: as torch has it, by assay's own kernel, by oneDNN's, or in 8-bit integers.

A kernel holds the only copy of its weights, in the layout that it wants. Knows no layer and no checkpoint.
"""

import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from assay.model import compiled, products
from assay.model.activation import activation
from assay.model.room import Room

# Our name of an activation → oneDNN's, which computes it while the product is still in the cache.
_FUSED = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "tanh": ("tanh", ""),
}


class Kernel(Protocol):
    """x [rows, in_features] → act(x Wᵀ + b) [rows, out_features]; or, gated, act(x Gᵀ + b) * (x Uᵀ + b), with G over U
    in one weight, and the bias likewise.

    recurring: whether it is slow for each number of rows that has not come before. alike: whether a row's result is the
    same bits among any others.
    """

    recurring: bool
    alike: bool

    def __call__(self, x: Tensor) -> Tensor: ...


class Plain:
    """torch's own product, on any device and in any precision. The reference that tests compare the others with."""

    recurring = False
    alike = False

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str | None = None, gated: bool = False) -> None:
        self.weight, self.bias, self.gated = weight, bias, gated
        self._act = activation(act) if act else None

    def __call__(self, x: Tensor) -> Tensor:
        y, up = linear(x, self.weight, self.bias), None
        if self.gated:
            y, up = y.chunk(2, dim=-1)
        y = y if self._act is None else self._act(y)
        return y if up is None else y * up


class Panels:
    """assay's own product of float32 (assay/csrc), with the weight in panels as wide as two of the CPU's vectors.

    As fast as oneDNN's at many rows, up to twice as fast at few (docs/performance.md), and nothing is compiled for a
    number of rows. A row's result does not depend on the others.
    """

    recurring = False
    alike = True

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str | None, room: Room, gated: bool = False) -> None:
        self.weight = products.pack(weight, room, gated)
        self.bias = _own(bias, self.weight.lanes, gated)
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        return products.multiply(x, self.weight, self.bias, self.act)


def _own(bias: Tensor | None, lanes: int, gated: bool) -> Tensor | None:
    if bias is None:
        return None
    return products.beside(bias, lanes) if gated else bias.clone()


class Prepacked:
    """oneDNN's product, with the weight in the blocked layout that it computes in, and what follows fused.

    For bfloat16, and for float32 where assay's own kernels were not compiled. It is compiled for each number of rows. A
    row's result does not depend on how many there are, but for a single one; `alike` computes that as two.
    """

    recurring = True

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str | None = None, alike: bool = False) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = None if bias is None else bias.clone()
        self._act, self._variant = _FUSED[act]
        self.alike = alike

    def __call__(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """times: what the result is multiplied by, of its shape; then there is no activation."""
        if self.alike and x.shape[0] == 1:
            return self(x.expand(2, -1), None if times is None else times.expand(2, -1).contiguous())[:1]
        x, product = x.contiguous(), torch.ops.mkldnn._linear_pointwise
        if times is None:
            y: Tensor = product(x, self._weight, self._bias, self._act, [], self._variant)
        else:
            y = product.binary(x, times, self._weight, self._bias, "mul")
        return y


class Int8:
    """Weights as 8-bit integers with a scale for each row of W, inputs likewise with a scale for each row of x, found
    as they come (Dettmers et al. 2022), both spread, so that no outlier takes the bits (`products.spread`). Products
    are summed exactly, in 32 bits.

    No row's result depends on its neighbours, as it would with one scale for all of x. By assay's own product.
    """

    recurring = False
    alike = True

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str | None, room: Room, gated: bool = False) -> None:
        self.weight = products.pack8(weight, room, gated)
        self.bias = _own(bias, self.weight.lanes, gated)
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        return products.multiply8(x, self.weight, self.bias, self.act)


class PrepackedInt8:
    """The same by oneDNN's product, where that `is_exact`."""

    recurring = True
    alike = False  # torch's activations are not

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str | None = None) -> None:
        whole, scale = _in_8_bits(weight)
        self._scale = scale.squeeze(1) / products.shares(weight.shape[1])
        self._weight = _prepacked8(whole.bitwise_xor_(_ZERO).view(torch.int8))
        self._bias = None if bias is None else bias.clone()
        self._act = act

    @staticmethod
    @cache
    def is_exact() -> bool:
        """Whether sums are exact here, tried with the largest. Without VNNI, oneDNN adds two products in 16 bits, and
        what does not fit them is cut off.
        """
        return all(
            torch.equal(
                _product8(torch.full((rows, 64), 255, dtype=torch.uint8), _prepacked8(weight), torch.ones(32)),
                127.0 * weight.sum(dim=1).expand(rows, -1),
            )
            for rows in (1, 2, 64)
            for weight in (torch.full((32, 64), sign * 127, dtype=torch.int8) for sign in (-1, 1))
        )

    def __call__(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """As Prepacked's."""
        whole, scale = _in_8_bits(x)
        y = _product8(whole, self._weight, self._scale)
        y.mul_(scale)
        if self._bias is not None:
            y.add_(self._bias)
        y = y if self._act is None else activation(self._act)(y)
        return y if times is None else y.mul_(times)


class Pair:
    """A gated product by two of oneDNN's."""

    def __init__(self, gate: Prepacked | PrepackedInt8, up: Prepacked | PrepackedInt8) -> None:
        self._gate, self._up = gate, up
        self.recurring, self.alike = up.recurring, gate.alike and up.alike

    def __call__(self, x: Tensor) -> Tensor:
        return self._up(x, times=self._gate(x))


_ZERO = 128  # unsigned, with this for zero: the form for which oneDNN has its fast kernels


def _prepacked8(whole: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
    return packed


def _product8(whole: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(whole - 128) Wᵀ, of uint8 [rows, in] and int8 in oneDNN's layout, times scale [out]."""
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        whole, 1.0, _ZERO, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


def _in_8_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, size] → (uint8 [rows, size], scale [rows, 1]), with scale * (whole - 128) for x, spread.

    The plain steps are the fast ones: torch's inf-norm, its broadcasting addcmul and its float32 → uint8 use no
    vectors, and took half of the time of an int8 model. A half is added, for conversion cuts off.
    """
    x = products.spread(x)
    scale = torch.maximum(x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True).neg_())
    scale = scale.div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    return torch.mul(x, scale.reciprocal()).add_(_ZERO + 0.5).to(torch.int16).to(torch.uint8), scale


def fastest(
    weight: Tensor, bias: Tensor | None, act: str | None, gated: bool, *, int8: bool, alike: bool, room: Room
) -> Kernel | None:
    """The kernel for a weight of this precision on this machine, or None where there is none but the plain one.

    alike: a row's result is to be the same bits among any others, if that can be had. room: for weights in assay's own
    layouts.
    """
    onednn = has_onednn(weight.device)
    make: type[PrepackedInt8] | Callable[..., Prepacked]
    if compiled.supports(weight):
        return (Int8 if int8 else Panels)(weight, bias, act, room, gated)
    if int8:
        assert has_int8(weight.device), "who loads a model has asked"
        make = PrepackedInt8
    elif onednn and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16())):
        make = partial(Prepacked, alike=alike)
    else:
        return None
    if not gated:
        return make(weight, bias, act)
    halves = zip(weight.chunk(2), (None, None) if bias is None else bias.chunk(2), (act, None), strict=True)
    return Pair(*(make(*half) for half in halves))


def has_int8(device: torch.device) -> bool:
    """Whether there is a product of 8-bit integers here, with exact sums."""
    return device.type == "cpu" and (
        compiled.library() is not None or (has_onednn(device) and PrepackedInt8.is_exact())
    )


def has_onednn(device: torch.device) -> bool:
    """Whether products with weights in oneDNN's own layout run here."""
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without, it is several times slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

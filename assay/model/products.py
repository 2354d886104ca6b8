"""Products by assay's own kernels (assay/csrc), of float32 and of 8-bit integers, and the layouts that they want.

Who calls has made sure that `compiled.supports` says yes. Knows no model.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from assay.model.compiled import address, kernels
from assay.model.room import Room

ACTIVATIONS = {None: 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3, "silu": 4, "swish": 4, "tanh": 5}


def shares(size: int) -> int:
    """Among how many neighbours `spread` shares what each of so many floats says."""
    most = min(128, size & -size)
    return most if most >= 8 else 1


def spread(x: Tensor) -> Tensor:
    """x [rows, size], float32 → the same, with what each float of a row says shared by up to 128 neighbours: their
    sums and differences, as Sylvester has them.

    Rows that are both spread have `shares` times the product that they had. One float that is far larger than the
    others, as trained models have, takes the 8 bits of a row from them; spread, it does not (Ashkboos et al. 2024).
    """
    most = shares(x.shape[1])
    return (x.reshape(-1, most) @ _hadamard(most)).view(x.shape)


@cache
def _hadamard(size: int) -> Tensor:
    matrix = torch.ones((1, 1))
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, size] → (uint8 [rows, size], scale [rows]), of which the product, less `zero8`, is x, spread, nearly."""
    x = x if x.stride(1) == 1 else x.contiguous()
    whole = torch.empty(x.shape, dtype=torch.uint8)
    return whole, _quantize(kernels().assay_lanes8(), x, whole)


def zero8() -> int:
    """What stands for 0 in an input of 8 bits, of which one less is the largest: 128 where VNNI adds four products in
    32 bits, and 91 where AVX2 adds them in 16 bits, which hold no more (`quantize_weight`).
    """
    return int(kernels().assay_zero8(kernels().assay_lanes8()))


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [rows, size] → (int8 [rows, size], scale [rows]), of which the product is the weight, spread, nearly.

    Where `zero8` is 91, no four of 0, 1, 4 and 5 of each eight, nor of 2, 3, 6 and 7, have more than 181 of one sign:
    inputs are 181 at most, and 181 * 181 < 2 ** 15, so that their sums are exact.
    """
    weight = weight.contiguous()
    whole, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    lanes = kernels().assay_lanes8()
    kernels().assay_quantize_weight(lanes, weight.data_ptr(), *weight.shape, whole.data_ptr(), scale.data_ptr())
    return whole, scale


def _quantize(lanes: int, x: Tensor, whole: Tensor) -> Tensor:
    scale = torch.empty(len(x))
    kernels().assay_quantize(
        lanes,
        x.data_ptr(),
        x.stride(0),
        *x.shape,
        whole.data_ptr(),
        whole.stride(0) * whole.element_size(),
        scale.data_ptr(),
    )
    return scale


def beside(x: Tensor, lanes: int) -> Tensor:
    """Rows [2 * size, ...] of two matrices, one over the other → so many of either in turn, zeros behind the last."""
    size = len(x) // 2
    groups = -(-size // lanes)
    padded = x.new_zeros((2, groups * lanes, *x.shape[1:]))
    padded[:, :size] = x.view(2, size, *x.shape[1:])
    return padded.view(2, groups, lanes, *x.shape[1:]).transpose(0, 1).reshape(2 * groups * lanes, *x.shape[1:])


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [out_features, in_features], or, gated, two of them, laid out for vectors of so many lanes."""

    panels: Tensor
    in_features: int
    out_features: int
    lanes: int
    gated: bool


def pack(weight: Tensor, room: Room, gated: bool = False) -> Packed:
    """A weight [out_features, in_features], or, gated, G over U [2 * out_features, in_features], laid out anew."""
    lanes, out_features = kernels().assay_lanes(), len(weight) // 2 if gated else len(weight)
    weight = beside(weight, lanes) if gated else weight.contiguous()
    rows, in_features = weight.shape
    panels = room.empty(-(-rows // (2 * lanes)) * 2 * lanes * in_features, torch.float32)
    kernels().assay_pack(lanes, weight.data_ptr(), in_features, rows, panels.data_ptr())
    return Packed(panels, in_features, out_features, lanes, gated)


def apart(size: int) -> int:
    """Floats from one row of so many to the next, such that neighbours are not cached over each other."""
    return size if size % 1024 else size + 16


def _apart(rows: int, size: int) -> Tensor:
    """Room for [rows, size], rows so far apart."""
    return torch.empty((rows, size)) if size % 1024 else torch.empty((rows, apart(size)))[:, :size]


def multiply(x: Tensor, weight: Packed, bias: Tensor | None, act: str | None) -> Tensor:
    """act(x Wᵀ + bias), or, gated, act(x Gᵀ + bias) * (x Uᵀ + bias): [rows, in_features] → [rows, out_features]. Raises
    MemoryError.

    A gated product's bias lies as `beside` has it. A row's result does not depend on the others, to the last bit.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    assert x.shape[1] == weight.in_features
    y = _apart(x.shape[0], weight.out_features)
    failed = kernels().assay_multiply(
        weight.lanes,
        x.data_ptr(),
        x.stride(0),
        x.shape[0],
        weight.panels.data_ptr(),
        weight.in_features,
        weight.out_features,
        address(bias),
        ACTIVATIONS[act],
        weight.gated,
        y.data_ptr(),
        y.stride(0),
    )
    if failed:
        raise MemoryError("a product found no memory for its rows")
    return y


@dataclass(frozen=True, slots=True)
class Packed8:
    """A weight of 8-bit integers in panels for vectors of so many lanes, a scale for each of its rows, and what each
    column's sum begins with.
    """

    panels: Tensor
    base: Tensor
    scale: Tensor
    in_features: int
    out_features: int
    lanes: int
    gated: bool


def pack8(weight: Tensor, room: Room, gated: bool = False) -> Packed8:
    """As `pack`, spread and in 8-bit integers, for inputs that are spread too."""
    lanes, out_features = kernels().assay_lanes8(), len(weight) // 2 if gated else len(weight)
    whole, scale = quantize_weight(beside(weight, lanes) if gated else weight)
    rows, in_features = whole.shape
    columns, wide = -(-rows // (2 * lanes)) * 2 * lanes, kernels().assay_column8(lanes, in_features)
    panels, base = room.empty(columns * wide, torch.int8), torch.empty(columns, dtype=torch.int32)
    scales = torch.zeros(columns)
    scales[:rows] = scale / shares(in_features)
    kernels().assay_pack8(lanes, whole.data_ptr(), in_features, rows, panels.data_ptr(), base.data_ptr())
    return Packed8(panels, base, scales, in_features, out_features, lanes, gated)


def multiply8(x: Tensor, weight: Packed8, bias: Tensor | None, act: str | None) -> Tensor:
    """As `multiply`, with each row of x as 8-bit integers and a scale, found as it comes."""
    x = x if x.stride(1) == 1 else x.contiguous()
    assert x.shape[1] == weight.in_features
    lanes = weight.lanes
    whole = torch.empty((x.shape[0], kernels().assay_row8(lanes, weight.in_features)), dtype=torch.uint8)
    scale, y = _quantize(lanes, x, whole), _apart(x.shape[0], weight.out_features)
    kernels().assay_multiply8(
        lanes,
        whole.data_ptr(),
        whole.stride(0),
        scale.data_ptr(),
        x.shape[0],
        weight.panels.data_ptr(),
        weight.base.data_ptr(),
        weight.scale.data_ptr(),
        weight.in_features,
        weight.out_features,
        address(bias),
        ACTIVATIONS[act],
        weight.gated,
        y.data_ptr(),
        y.stride(0),
    )
    return y

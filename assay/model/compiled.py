"""assay's own kernels in C (assay/csrc), where they were compiled and the CPU has AVX2 or AVX-512, on float32 tensors.

They are compiled when the package is installed, if there is a C compiler; nothing needs them. Knows no model; who calls
has made sure that `supports` says yes.
"""

import ctypes
import logging
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from assay.model.room import Room

Which = Literal["all", "first", "last"]
"""Which tokens of a sequence ask."""

_log = logging.getLogger("assay.model")
_WHICH: dict[Which, int] = {"all": 0, "first": 1, "last": 2}
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3, "silu": 4, "swish": 4, "tanh": 5}
WIDEST = 16  # floats of a vector
_ANYWHERE = 1 << 40  # further than any sequence is long

# p: an address, n: an int64, i: an int, f: a float; then what comes back.
_SIGNATURES = {
    "assay_use": ("i", "i"),
    "assay_lanes": ("", "i"),
    "assay_has_bytes": ("", "i"),
    "assay_attend": ("pppp nnnnnn pn i ff nn", "i"),
    "assay_normalize": ("p nn nnn p ff p", "-"),
    "assay_normalize_sum": ("pn pn nn pp f p", "-"),
    "assay_turn": ("p nn nnn pp n p", "-"),
    "assay_pack": ("i p nn p", "-"),
    "assay_multiply": ("i pnn pnn p i p pn", "i"),
    "assay_layer": ("i p nnn pp pp pp f pp ni pp pp f f pni pp", "i"),
    "assay_quantize": ("p nnn pn p", "-"),
    "assay_finish": ("p nn pp i p", "-"),
    "assay_pack8": ("p nn pp", "-"),
    "assay_multiply8": ("pn pn ppp nn p i p pn", "-"),
}
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_int64,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
    "-": None,
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not compiled or the CPU has no vectors for them."""
    found = find_spec("assay._kernels")
    if found is None or found.origin is None:
        _log.info("assay's kernels were not compiled: everything is computed by torch, and slower.")
        return None
    try:  # OpenMP's names are found in torch's own library of it, which is in the process by now
        kernels = ctypes.CDLL(found.origin)
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(kernels, name)
            function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "")]
            function.restype = _TYPES[result]
    except (OSError, AttributeError) as error:  # another OpenMP, or what an older version has compiled
        _log.warning("assay's kernels do not load (%s): everything is computed by torch, and slower.", error)
        return None
    return kernels if kernels.assay_use(WIDEST) else None


def supports(x: Tensor) -> bool:
    """Whether there are kernels for such a tensor."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def _kernels() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None, "who calls has asked whether there are any"
    return kernels


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Iterable[tuple[int, int, int, int]],
    which: Which,
    scale: float,
    softcap: float | None,
    left: int | None,
    right: int | None,
) -> Tensor:
    """Attention within each sequence, as model/attention.py has it, in one call. Returns the shape of q.

    q: [tokens, heads, head_dim], or [seqs, heads, head_dim] unless all ask. spans: of each sequence, its first token
    and length, then its prefix's, or zeros. left, right: how far a token sees; None is to the end. A query's result
    depends on its own sequence alone, to the last bit. Raises MemoryError.
    """
    q, k, v = (x if x.stride(1) == x.shape[2] and x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    flat = array("q", [number for span in spans for number in span])
    out = torch.empty(q.shape)
    failed = _kernels().assay_attend(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        q.shape[1],
        k.shape[1],
        q.shape[2],
        flat.buffer_info()[0],
        len(flat) // 4,
        _WHICH[which],
        scale,
        softcap or 0.0,
        _ANYWHERE if left is None else left,
        _ANYWHERE if right is None else right,
    )
    if failed:
        raise MemoryError("attention found no memory for its scores")
    return out


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, size] → (uint8 [rows, size], scale [rows, 1]), with scale * (whole - 128) for x."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, size = x.shape
    whole, scale = torch.empty((rows, size), dtype=torch.uint8), torch.empty((rows, 1))
    _quantize(x, whole, scale)
    return whole, scale


def _quantize(x: Tensor, whole: Tensor, scale: Tensor) -> None:
    _kernels().assay_quantize(x.data_ptr(), x.stride(0), *x.shape, whole.data_ptr(), whole.stride(0), scale.data_ptr())


def finish(y: Tensor, scale: Tensor, bias: Tensor | None, act: str | None, times: Tensor | None) -> Tensor:
    """act(y * scale + bias) * times, in place of y [rows, size]. scale: [rows, 1]."""
    assert y.is_contiguous()
    assert times is None or times.is_contiguous()
    _kernels().assay_finish(
        y.data_ptr(),
        *y.shape,
        scale.data_ptr(),
        _address(bias),
        ACTIVATIONS[act],
        _address(times),
    )
    return y


def normalize(x: Tensor, weight: Tensor, eps: float, more: float) -> Tensor:
    """x / rms(x) * (weight + more), over the last dimension of [rows, size] or [tokens, heads, size]."""
    wide = x if x.dim() == 3 else x[:, None]
    wide = wide if wide.stride(2) == 1 else wide.contiguous()
    y = torch.empty(x.shape)
    _kernels().assay_normalize(
        wide.data_ptr(), wide.stride(0), wide.stride(1), *wide.shape, weight.data_ptr(), eps, more, y.data_ptr()
    )
    return y


def normalize_sum(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The layer norm of a + b, over the last dimension of [rows, size]."""
    a, b = (x if x.stride(1) == 1 else x.contiguous() for x in (a, b))
    y = torch.empty(a.shape)
    assert a.shape == b.shape
    _kernels().assay_normalize_sum(
        a.data_ptr(),
        a.stride(0),
        b.data_ptr(),
        b.stride(0),
        *a.shape,
        weight.data_ptr(),
        _address(bias),
        eps,
        y.data_ptr(),
    )
    return y


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """model/rotary.py's rotate: x [tokens, heads, head_dim] by cos and sin [tokens, dim]."""
    x = x if x.stride(2) == 1 else x.contiguous()
    y = torch.empty(x.shape)
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    _kernels().assay_turn(
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        *x.shape,
        cos.data_ptr(),
        sin.data_ptr(),
        cos.shape[1],
        y.data_ptr(),
    )
    return y


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [out_features, in_features] in the layout that vectors of so many lanes multiply with."""

    panels: Tensor
    in_features: int
    out_features: int
    lanes: int


def pack(weight: Tensor, room: Room) -> Packed:
    """A weight [out_features, in_features], laid out anew."""
    kernels = _kernels()
    weight, lanes = weight.contiguous(), kernels.assay_lanes()
    out_features, in_features = weight.shape
    panels = room.empty(-(-out_features // (2 * lanes)) * 2 * lanes * in_features, torch.float32)
    kernels.assay_pack(lanes, weight.data_ptr(), in_features, out_features, panels.data_ptr())
    return Packed(panels, in_features, out_features, lanes)


def apart(size: int) -> int:
    """Floats from one row of so many to the next, such that neighbours are not cached over each other."""
    return size if size % 1024 else size + 16


def _apart(rows: int, size: int) -> Tensor:
    """Room for [rows, size], rows so far apart."""
    return torch.empty((rows, size)) if size % 1024 else torch.empty((rows, apart(size)))[:, :size]


def _what_follows(bias: Tensor | None, act: str | None, times: Tensor | None, y: Tensor) -> tuple[int | None, ...]:
    """A product's last arguments: what follows it, and where it is written to."""
    assert times is None or times.stride() == y.stride()
    return _address(bias), ACTIVATIONS[act], _address(times), y.data_ptr(), y.stride(0)


def multiply(x: Tensor, weight: Packed, bias: Tensor | None, act: str | None, times: Tensor | None) -> Tensor:
    """act(x Wᵀ + bias) * times: [rows, in_features] → [rows, out_features]. Raises MemoryError.

    A row's result does not depend on the others, to the last bit.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    assert x.shape[1] == weight.in_features
    y = _apart(x.shape[0], weight.out_features)
    failed = _kernels().assay_multiply(
        weight.lanes,
        x.data_ptr(),
        x.stride(0),
        x.shape[0],
        weight.panels.data_ptr(),
        weight.in_features,
        weight.out_features,
        *_what_follows(bias, act, times, y),
    )
    if failed:
        raise MemoryError("a product found no memory for its rows")
    return y


def has_bytes() -> bool:
    """Whether there is a product of 8-bit integers for this CPU (AVX512-VNNI)."""
    kernels = library()
    return kernels is not None and bool(kernels.assay_has_bytes())


@dataclass(frozen=True, slots=True)
class Packed8:
    """A weight of 8-bit integers in panels, a scale for each of its rows, and what is added to each column."""

    panels: Tensor
    base: Tensor
    scale: Tensor
    in_features: int
    out_features: int


def pack8(whole: Tensor, scale: Tensor, room: Room) -> Packed8:
    """Whole numbers [out_features, in_features] and the scale of each row, laid out anew."""
    whole = whole.contiguous()
    out_features, in_features = whole.shape
    columns, wide = -(-out_features // 32) * 32, -(-in_features // 4) * 4
    panels, base = room.empty(columns * wide, torch.int8), torch.empty(columns, dtype=torch.int32)
    scales = torch.zeros(columns)
    scales[:out_features] = scale
    _kernels().assay_pack8(whole.data_ptr(), in_features, out_features, panels.data_ptr(), base.data_ptr())
    return Packed8(panels, base, scales, in_features, out_features)


def multiply8(x: Tensor, weight: Packed8, bias: Tensor | None, act: str | None, times: Tensor | None) -> Tensor:
    """As `multiply`, with each row of x as 8-bit integers and a scale, found as it comes."""
    x = x if x.stride(1) == 1 else x.contiguous()
    assert x.shape[1] == weight.in_features
    wide = -(-weight.in_features // 4) * 4
    whole = torch.empty((x.shape[0], wide if wide % 1024 else wide + 64), dtype=torch.uint8)
    scale, y = torch.empty(x.shape[0]), _apart(x.shape[0], weight.out_features)
    _quantize(x, whole, scale)
    _kernels().assay_multiply8(
        whole.data_ptr(),
        whole.stride(0),
        scale.data_ptr(),
        x.shape[0],
        weight.panels.data_ptr(),
        weight.base.data_ptr(),
        weight.scale.data_ptr(),
        wide,
        weight.out_features,
        *_what_follows(bias, act, times, y),
    )
    return y

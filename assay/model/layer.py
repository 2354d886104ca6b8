"""A layer of an encoder, each sum followed by its norm, in one call of assay's own kernels (assay/csrc).

With few tokens, Python between the products takes as long as they do: the weights that pass leave nothing of it in the
caches. Knows no checkpoint.
"""

import ctypes
import threading
from array import array
from collections.abc import Sequence as Seq
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from assay.model import compiled
from assay.model.attention import spans
from assay.model.batch import PackedBatch, Rows
from assay.model.compiled import WHICH, WIDEST
from assay.model.kernels import Int8, Kernel, Panels
from assay.model.products import ACTIVATIONS, Packed8, apart

_KEPT = 16 << 20  # floats
_of_thread = threading.local()


class _Linear(ctypes.Structure):
    """struct linear in kernels.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "base", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("in_features", "out_features", "act")),
    )


class _Norm(ctypes.Structure):
    """struct norm in kernels.c."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


Products = tuple[Panels | Int8, ...]
"""qkv, attn_out, up, down."""


def _room(size: int) -> Tensor:
    """Of so many floats or more, for one call: the thread's own, since what is freed goes back to the system, and comes
    again page by page.
    """
    kept: Tensor | None = getattr(_of_thread, "room", None)
    if kept is not None and len(kept) >= size:
        return kept
    room = torch.empty(size)
    if size <= _KEPT:
        _of_thread.room = room
    return room


class Layer:
    """x [tokens, hidden] → [tokens, hidden], or [seqs, hidden] of those rows alone: to the last bit what the products,
    norms and attention that it is made of give one by one.
    """

    def __init__(
        self, products: Products, attn_norm: nn.LayerNorm, mlp_norm: nn.LayerNorm, heads: int, scale: float
    ) -> None:
        self._own: list[Tensor] = []  # what lies at the addresses
        self._hidden, wide = products[0].weight.in_features, products[2].weight.out_features
        self._lanes = products[0].weight.lanes if isinstance(products[0], Panels) else WIDEST
        self._heads, self._scale = heads, scale
        self._room = apart(self._hidden) + max(apart(3 * self._hidden), apart(wide))
        if isinstance(products[0], Int8):
            self._room += 1 + -(-(max(self._hidden, wide) + 68) // 4)
        self._products = (_Linear * 4)(*map(self._linear, products))
        self._norms = (_Norm * 2)(self._norm(attn_norm), self._norm(mlp_norm))

    @classmethod
    def of(
        cls,
        products: Seq[Kernel | None],
        attn_norm: nn.LayerNorm,
        mlp_norm: nn.LayerNorm,
        heads: int,
        scale: float,
    ) -> Self | None:
        """Of the products qkv, attn_out, up and down; None where not all of them are assay's own, of one kind."""
        for kind in (Panels, Int8):
            own = tuple(product for product in products if isinstance(product, kind))
            if len(own) == 4:
                return cls(own, attn_norm, mlp_norm, heads, scale)
        return None

    def _linear(self, product: Panels | Int8) -> _Linear:
        weight = product.weight
        whole = (weight.base, weight.scale) if isinstance(weight, Packed8) else (None, None)
        addresses = map(self._address, (weight.panels, *whole, product.bias))
        return _Linear(*addresses, weight.in_features, weight.out_features, ACTIVATIONS[product.act])

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        """Of copies: parameters may yet be given other places."""
        bias = None if norm.bias is None else norm.bias.clone()
        return _Norm(self._address(norm.weight.clone()), self._address(bias), norm.eps)

    def _address(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        self._own.append(x)
        return x.data_ptr()

    def __call__(self, x: Tensor, batch: PackedBatch, rows: Rows | None) -> Tensor:
        kernels = compiled.library()
        assert kernels is not None, "there were some when the products were made"
        x = x.contiguous()
        tokens = x.shape[0]
        flat = array("q", chain.from_iterable(spans(batch, rows)))
        room = _room(tokens * self._room)
        y = torch.empty((tokens if rows is None else batch.num_seqs, self._hidden))
        failed = kernels.assay_layer(
            self._lanes,
            x.data_ptr(),
            tokens,
            self._heads,
            self._products,
            self._norms,
            self._scale,
            flat.buffer_info()[0],
            len(flat) // 4,
            WHICH[rows or "all"],
            room.data_ptr(),
            y.data_ptr(),
        )
        if failed:
            raise MemoryError("a layer found no memory for its attention or its products")
        return y

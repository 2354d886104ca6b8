"""A layer of a model in one call of assay's own kernels (assay/csrc).

With few tokens, Python between the products takes as long as they do: the weights that pass leave nothing of it in the
caches. Knows no checkpoint.
"""

import ctypes
import threading
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from assay.model import compiled
from assay.model.attention import Window, spans
from assay.model.batch import PackedBatch, Rows
from assay.model.compiled import ANYWHERE, WHICH, address, tables_at
from assay.model.kernels import Int8, Kernel, Panels
from assay.model.linear import Block, Linear
from assay.model.mlp import MLP
from assay.model.norm import RMSNorm
from assay.model.products import ACTIVATIONS, Packed8

_KEPT = 16 << 20  # floats
_of_thread = threading.local()


class _Linear(ctypes.Structure):
    """struct linear in kernels.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "base", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("in_features", "out_features")),
        *((name, ctypes.c_int) for name in ("act", "gated")),
    )


class _Norm(ctypes.Structure):
    """struct norm in kernels.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_float) for name in ("eps", "more")),
        ("centred", ctypes.c_int),
    )


_PRODUCTS = ("qkv", "attn_out", "up", "down")
_NORMS = ("attn", "mlp", "q", "k", "seen", "fed")


class _Layer(ctypes.Structure):
    """struct layer in kernels.c."""

    _fields_ = (
        *((name, _Linear) for name in _PRODUCTS),
        *((name, _Norm) for name in _NORMS),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim", "turned", "left", "right")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        *((name, ctypes.c_int) for name in ("after", "lanes")),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What a layer is beside its products and norms: what `attention` is told; after: each sum is followed by its norm,
    which else is ahead of what is added.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    after: bool
    causal: bool = False
    window: Window | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Norms:
    """attn, mlp: of the sums, or ahead of attention and of the MLP. q, k: of each head. seen, fed: of what attention
    and the MLP add.
    """

    attn: nn.Module
    mlp: nn.Module
    q: nn.Module | None = None
    k: nn.Module | None = None
    seen: nn.Module | None = None
    fed: nn.Module | None = None


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


def _flat_spans(batch: PackedBatch, rows: Rows | None) -> "array[int]":
    """Made once for all layers that a batch goes through."""
    kept: tuple[PackedBatch, Rows | None, array[int]] | None = getattr(_of_thread, "spans", None)
    if kept is None or kept[0] is not batch or kept[1] != rows:
        kept = _of_thread.spans = batch, rows, array("q", chain.from_iterable(spans(batch, rows)))
    return kept[2]


class Layer:
    """To the last bit what the products, norms and attention that it is made of give one by one."""

    def __init__(self, products: Seq[Panels | Int8], norms: Norms, shape: Shape) -> None:
        self._own: list[Tensor] = []  # what lies at the addresses
        left, right = shape.window or (ANYWHERE, ANYWHERE)
        self._layer = _Layer(
            *map(self._linear, products),
            *(self._norm(getattr(norms, name)) for name in _NORMS),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            dim=shape.head_dim,
            left=left,
            right=0 if shape.causal else right,
            scale=shape.scale,
            softcap=shape.softcap or 0.0,
            after=shape.after,
            lanes=products[0].weight.lanes,
        )
        self._after, self._hidden = shape.after, products[0].weight.in_features

    @classmethod
    def of(cls, products: Seq[Kernel | None], norms: Norms, shape: Shape) -> Self | None:
        """Of the products qkv, attn_out, up and down; None where not all of them are assay's own, of one kind."""
        for kind in (Panels, Int8):
            own = [product for product in products if isinstance(product, kind)]
            if len(own) == len(_PRODUCTS):
                return cls(own, norms, shape)
        return None

    def _linear(self, product: Panels | Int8) -> _Linear:
        weight = product.weight
        whole = (weight.base, weight.scale) if isinstance(weight, Packed8) else (None, None)
        addresses = map(self._address, (weight.panels, *whole, product.bias))
        return _Linear(*addresses, weight.in_features, weight.out_features, ACTIVATIONS[product.act], weight.gated)

    def _norm(self, norm: nn.Module | None) -> _Norm:
        """Of copies: parameters may yet be given other places."""
        if isinstance(norm, RMSNorm):
            return _Norm(self._address(norm.weight.clone()), None, norm.eps, norm.more, False)
        if isinstance(norm, nn.LayerNorm):
            bias = None if norm.bias is None else norm.bias.clone()
            return _Norm(self._address(norm.weight.clone()), self._address(bias), norm.eps, 0.0, True)
        assert norm is None or isinstance(norm, nn.Identity)
        return _Norm()

    def _address(self, x: Tensor | None) -> int | None:
        if x is not None:
            self._own.append(x)
        return address(x)

    def __call__(
        self,
        x: Tensor,
        batch: PackedBatch,
        rows: Rows | None,
        more: Tensor | None = None,
        turn: tuple[Tensor, Tensor] | None = None,
        tables: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, Tensor]:
        """x [tokens, hidden] → (x, y), [tokens, hidden] or [seqs, hidden] of those rows alone: where norms come after
        their sums, y is what the layer gives, and else what is yet to be added to x, which has changed in its place.

        more: what is to be added to x first. turn: cos and sin of each token. tables: by distance, of queries and of
        keys, as `compiled.attend` has them. Raises MemoryError.
        """
        kernels = compiled.library()
        assert kernels is not None, "there were some when the products were made"
        x, tokens, asked = x.contiguous(), x.shape[0], x.shape[0] if rows is None else batch.num_seqs
        flat = _flat_spans(batch, rows)
        layer = ctypes.byref(self._layer)
        cos, sin = turn or (None, None)
        assert cos is None or cos.is_contiguous()
        self._layer.turned = 0 if cos is None else cos.shape[1]
        assert more is not None or self._after or not self._layer.attn.centred, "the first is RMSNorm, or none"
        room = _room(kernels.assay_layer_room(layer, tokens, asked))
        y = torch.empty((asked, self._hidden))
        failed = kernels.assay_layer(
            layer,
            x.data_ptr(),
            address(more),
            tokens,
            address(cos),
            address(sin),
            *tables_at(*tables),
            flat.buffer_info()[0],
            len(flat) // 4,
            WHICH[rows or "all"],
            room.data_ptr(),
            y.data_ptr(),
        )
        if failed:
            raise MemoryError("a layer found no memory for its attention or its products")
        return x[:asked], y


class TransformerLayer(Block):
    """Attention and an MLP, and the two sums: in one call, once its products have kernels of assay's own.

    Who has more than two norms says so in `norms`.
    """

    qkv: Linear
    attn_out: Linear
    mlp: MLP
    attn_norm: nn.Module
    mlp_norm: nn.Module
    shape: Shape
    joined: Layer | None = None

    @property
    def window(self) -> Window | None:
        return self.shape.window

    def norms(self) -> Norms:
        return Norms(self.attn_norm, self.mlp_norm)

    def join(self) -> None:
        products = (self.qkv.kernel, self.attn_out.kernel, self.mlp.up.kernel, self.mlp.down.kernel)
        self.joined = Layer.of(products, self.norms(), self.shape)

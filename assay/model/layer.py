"""A layer of an encoder, each sum followed by its norm, in one call of assay's own kernels (assay/csrc).

With few tokens, Python between the products takes as long as they do: the weights that pass leave nothing of it in the
caches. Knows no checkpoint.
"""

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
from assay.model.kernels import Kernel, Panels
from assay.model.products import ACTIVATIONS, apart

_WHICH: dict[Rows | None, int] = {None: 0, "first": 1, "last": 2}
_KEPT = 16 << 20  # floats
_of_thread = threading.local()


Products = tuple[Panels, Panels, Panels, Panels]
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
        qkv, attn_out, up, down = products
        self._own: list[Tensor] = []  # what lies at the addresses
        self._lanes, self._hidden, wide = qkv.weight.lanes, qkv.weight.in_features, up.weight.out_features
        self._room = apart(self._hidden) + max(apart(3 * self._hidden), apart(wide))
        self._constant = (
            *(self._hidden, heads, *self._product(qkv), *self._product(attn_out), *self._norm(attn_norm)),
            *(*self._product(up), wide, ACTIVATIONS[up.act], *self._product(down), *self._norm(mlp_norm)),
            scale,
        )

    @classmethod
    def of(
        cls,
        products: Seq[Kernel | None],
        attn_norm: nn.LayerNorm,
        mlp_norm: nn.LayerNorm,
        heads: int,
        scale: float,
    ) -> Self | None:
        """Of the products qkv, attn_out, up and down; None where not all of them are assay's own in float32."""
        own = tuple(product for product in products if isinstance(product, Panels))
        return cls(own, attn_norm, mlp_norm, heads, scale) if len(own) == 4 else None

    def _product(self, product: Panels) -> tuple[int | None, ...]:
        return self._address(product.weight.panels), self._address(product.bias)

    def _norm(self, norm: nn.LayerNorm) -> tuple[int | float | None, ...]:
        """Of copies: parameters may yet be given other places."""
        bias = None if norm.bias is None else norm.bias.clone()
        return self._address(norm.weight.clone()), self._address(bias), norm.eps

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
            *self._constant,
            flat.buffer_info()[0],
            len(flat) // 4,
            _WHICH[rows],
            room.data_ptr(),
            y.data_ptr(),
        )
        if failed:
            raise MemoryError("a layer found no memory for its attention or its products")
        return y

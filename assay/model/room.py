"""Where weights lie. Knows no layout and no model."""

import mmap

import torch
from torch import Tensor

from assay.model.memory import into_large_pages

_CHUNK = 64 << 20  # as much as is asked for at once; what nobody has touched takes no memory
_PAGE = 4096


class Room:
    """Memory for weights, one behind the other, so that it can be had in pages of 2 MiB.

    Weights are read from end to end for each batch. For a short text that is most of its time, and half of that went
    into finding small pages (docs/performance.md). A chunk is given back when no tensor lies in it any more.
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []  # of bytes, each all of a chunk
        self._used = 0  # of the last

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """[size], of zeros as yet."""
        wanted = -(-size * dtype.itemsize // _PAGE) * _PAGE
        if not self._chunks or self._used + wanted > len(self._chunks[-1]):
            self._chunks.append(torch.frombuffer(_mapped(max(_CHUNK, wanted)), dtype=torch.uint8))
            self._used = 0
        start = self._used
        self._used += wanted
        return self._chunks[-1][start : start + size * dtype.itemsize].view(dtype)

    def settle(self) -> None:
        """Nothing more comes: move what is here into large pages, which may take the system longer to find than the
        weights to read.
        """
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            into_large_pages(chunk.data_ptr(), self._used if chunk is chunks[-1] else len(chunk))


def _mapped(size: int) -> mmap.mmap:
    """Private memory: what is shared has small pages only."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)

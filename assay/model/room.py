"""Where weights lie. Knows no layout and no model."""

import mmap

import torch
from torch import Tensor

_CHUNK = 64 << 20  # as much as is asked for at once; what nobody has touched takes no memory
_PAGE = 4096


class Room:
    """Memory for weights, one behind the other, in pages of 2 MiB where the system gives them to who asks.

    Weights are read from end to end for each batch. For a short text that is most of its time, and half of that went
    into finding small pages (docs/performance.md). A chunk is given back when no tensor lies in it any more.
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """[size], of zeros as yet."""
        wanted = -(-size * dtype.itemsize // _PAGE) * _PAGE
        if self._chunk is None or self._used + wanted > len(self._chunk):
            self._chunk, self._used = _chunk(max(_CHUNK, wanted)), 0
        start = self._used
        self._used += wanted
        return torch.frombuffer(self._chunk, dtype=dtype, count=size, offset=start)


def _chunk(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages only
    chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk

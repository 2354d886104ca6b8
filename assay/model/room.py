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
            self._chunk, self._used = mmap.mmap(-1, max(_CHUNK, wanted)), 0
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._chunk.madvise(mmap.MADV_HUGEPAGE)
        start = self._used
        self._used += wanted
        return torch.frombuffer(self._chunk, dtype=dtype, count=size, offset=start)

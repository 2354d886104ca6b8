"""Where weights lie. Knows no layout and no model."""

import mmap
import threading

import torch
from torch import Tensor

from assay.model.memory import into_large_pages

_CHUNK = 64 << 20  # as much as is asked for at once; what nobody has touched takes no memory
_PAGE = 4096
_SECONDS = 1.0  # until weights are moved


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
        """Nothing more comes: move what is here into large pages, in a second, on a thread that ends.

        They may take the system longer to find than the weights to read, and whoever waits for the first answer is not
        to wait for them.
        """
        chunks, self._chunks = self._chunks, []
        parts = [chunk[: self._used if chunk is chunks[-1] else None] for chunk in chunks]
        if parts:
            timer = threading.Timer(_SECONDS, _move, (parts,))
            timer.name, timer.daemon = "assay-pages", True
            timer.start()


def _move(parts: list[Tensor]) -> None:
    for part in parts:
        into_large_pages(part.data_ptr(), len(part))


def _mapped(size: int) -> mmap.mmap:
    """Private memory: what is shared has small pages only."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)

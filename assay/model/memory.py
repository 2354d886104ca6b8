"""What the C library and the system do with memory: what a batch has freed, what models lie in. Knows no model."""

import ctypes
import sys
from pathlib import Path

_TRIM, _MAPPINGS, _ARENAS = -1, -4, -8  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
_KEPT = 256 << 20
_HUGEPAGE, _COLLAPSE = 14, 25  # asm-generic/mman-common.h: MADV_HUGEPAGE, MADV_COLLAPSE
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep_freed_memory() -> None:
    """Have this process keep up to 256 MiB of what it frees, instead of giving it back after each batch.

    The next batch would be given the same pages anew, one fault at a time, zeroed: up to a tenth of a batch's time
    (docs/performance.md). A thread's own arena gives back whole parts of it whatever it is told, so all threads share
    one; and what has a mapping of its own is always given back, so nothing has one. To be called before there are any
    threads, by whoever owns the process. Only where the C library is glibc.
    """
    process = _glibc()
    if process is not None:
        process.mallopt(_ARENAS, 1)
        process.mallopt(_MAPPINGS, 0)
        process.mallopt(_TRIM, _KEPT)


def give_back_freed_memory() -> None:
    """Give back what is free at this moment: what loading a model has held, of which no batch needs as much."""
    process = _glibc()
    if process is not None:
        process.malloc_trim(0)


def into_large_pages(address: int, size: int) -> None:
    """Move what lies there, from the start of a page on, into pages of 2 MiB: as many as the system has at once (Linux
    6.1; others, in time). Nothing is done where it has none, or its operator wants none.
    """
    if not _LARGE_PAGES.is_file() or "[never]" in _LARGE_PAGES.read_text("ascii"):
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for advice in (_HUGEPAGE, _COLLAPSE):
        advise(address, size, advice)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    process = ctypes.CDLL(None)
    return process if hasattr(process, "gnu_get_libc_version") else None

"""What the C library does with memory that a batch has freed. Knows no model."""

import ctypes
from functools import cache

_TRIM, _MMAP = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT = 256 << 20
_LARGEST = 32 << 20  # the most that glibc takes


@cache
def keep_freed_memory() -> None:
    """Have this process keep up to 256 MiB of what it frees, instead of giving it back after each batch.

    The next batch would be given the same pages anew, one fault at a time, zeroed: up to a tenth of a batch's time
    (docs/performance.md). Only where the C library is glibc.
    """
    process = ctypes.CDLL(None)
    if hasattr(process, "gnu_get_libc_version"):
        process.mallopt(_MMAP, _LARGEST)
        process.mallopt(_TRIM, _KEPT)

"""Importing torch, which is most of what a start takes. Knows no model."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_torch(*, own_process: bool = False) -> Iterator[None]:
    """What imports torch runs in here: sooner, and without a warning that is of no use.

    Several hundred thousand objects come with torch, and the collector looks through them again and again while more
    come: 0.2–0.5 s (docs/performance.md). own_process: what there is at the end is never looked at again, which only
    the process's owner can say; else what comes next is a look at all of it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():  # torch tells everyone without NumPy that it is missing; nothing here uses it
            warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
            yield
    finally:
        if own_process:
            gc.freeze()
        if enabled:
            gc.enable()

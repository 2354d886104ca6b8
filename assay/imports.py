"""Importing torch, which is most of what a start takes. Knows no model."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_torch(*, own_process: bool = False) -> Iterator[None]:
    """What imports torch runs in here: sooner, and without a warning that is of no use.

    Several hundred thousand objects come with torch, and the collector looks through them again and again while more
    come: 0.2–0.5 s (docs/performance.md). Here it rests, and takes them for old then. own_process: it never looks at
    them again, which only the process's owner can say.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():  # torch tells everyone without NumPy that it is missing; nothing here uses it
            warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
            yield
    finally:
        others = gc.get_freeze_count() > 0  # frozen by somebody else, who wants it so
        if own_process or not others:
            gc.freeze()
        if not own_process and not others:
            gc.unfreeze()  # what was frozen is old
        if enabled:
            gc.enable()

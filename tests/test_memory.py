"""Memory that a thread has freed, in a process of its own, since the C library is told for good."""

import platform
import subprocess
import sys

import pytest

BATCHES = """
import resource, sys, threading
if sys.argv[1] == "keep":
    from assay.model.memory import keep_freed_memory
    keep_freed_memory()
import torch

def work():
    for number in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        [torch.ones(5 << 20) for _ in range(5)]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(max(faults[3:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_the_next_batch_is_given_the_same_pages() -> None:
    """Five tensors of 20 MiB at a time: 25,600 pages."""

    def faults(mode: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", BATCHES, mode], capture_output=True, text=True, check=True, timeout=60
        )
        return int(done.stdout)

    assert faults("keep") < 1000
    assert faults("not") > 5000, "it is kept anyway: nothing is needed here"

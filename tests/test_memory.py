"""Memory that a thread has freed, in a process of its own, since the C library is told for good."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
from assay.model.memory import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

if sys.argv[1] != "not":
    keep_freed_memory()

def work():
    held = [b"x" * (20 << 20) for _ in range(5)]
    most = resident()
    del held
    if sys.argv[1] == "give back":
        give_back_freed_memory()
    print(resident() / most)

thread = threading.Thread(target=work)
thread.start()
thread.join()
ctypes.CDLL(None).malloc_stats()  # to stderr
"""


def told(mode: str) -> tuple[float, int]:
    """(What share of its memory a thread still has when it has freed 100 MiB, how many arenas there are.)"""
    command = [sys.executable, "-c", SCRIPT, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout), done.stderr.count("Arena ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_what_a_thread_frees_is_kept_in_one_arena() -> None:
    share, arenas = told("keep")
    assert (share > 0.9, arenas) == (True, 1)
    share, arenas = told("not")
    assert (share < 0.5, arenas) == (True, 2), "glibc does so by itself: nothing has to be told"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_what_is_kept_is_given_back_when_that_is_asked_for() -> None:
    share, _ = told("give back")
    assert share < 0.5

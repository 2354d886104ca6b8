"""The kernels' code for vectors of 16 floats on a CPU without AVX-512: the same source, with each of its instructions
that other CPUs lack done by loops (wide.h). It says whether the code is right, and nothing about its speed; what a
compiler makes of it for a real AVX-512 is not seen.
"""

import ctypes
import hashlib
import os
import re
import subprocess
from pathlib import Path

from assay.model import compiled

SOURCES = Path(compiled.__file__).parents[1] / "csrc"
HEADER = Path(__file__).with_suffix(".h")


def emulated(folder: Path, vnni: bool = True) -> ctypes.CDLL:
    """Kernels whose widest vectors have 16 floats, compiled into the folder unless it has them (some 20 s).

    vnni: whether the CPU has that too.
    """
    sources = sorted(SOURCES.iterdir())
    known = hashlib.sha256(b"".join(file.read_bytes() for file in [HEADER, *sources])).hexdigest()[:16]
    library = folder / f"wide-{'vnni' if vnni else 'without'}-{known}.so"
    if not library.exists():
        _compile(library, vnni)
    return compiled.load(str(library))


def _compile(library: Path, vnni: bool) -> None:
    source, targets = re.subn(r'target\("avx512[^"]*"\)', 'target("avx2,fma")', (SOURCES / "kernels.c").read_text())
    source, questions = re.subn(r'__builtin_cpu_supports\("avx512(?!vnni)\w+"\)', "1", source)
    source, last = re.subn(r'__builtin_cpu_supports\("avx512vnni"\)', str(int(vnni)), source)
    assert (targets, questions, last) == (2, 4, 1), "kernels.c asks for AVX-512 elsewhere than tests/wide.py knows"
    begun = library.with_suffix(f".{os.getpid()}")
    # -O2: with less, products and sums are rounded one by one
    options = ["-shared", "-fPIC", "-O2", "-fopenmp", "-Wno-psabi", "-g0", f"-I{SOURCES}", f"-include{HEADER}"]
    subprocess.run(["gcc", *options, "-xc", "-", "-o", begun, "-lm"], input=source, text=True, check=True)
    begun.rename(library)

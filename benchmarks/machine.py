"""What the figures were measured on: the CPU and what it can multiply, memory, versions. Knows no measure."""

import os
import platform
import subprocess
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

FLAGS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-VNNI": "avx_vnni",
    "AVX512-VNNI": "avx512_vnni",
    "AVX512-BF16": "avx512_bf16",
    "AMX-BF16": "amx_bf16",
    "AMX-INT8": "amx_int8",
}
"""What matrix products gain from, and what /proc/cpuinfo calls it."""
BFLOAT16 = {"AVX512-BF16", "AMX-BF16"}
"""With one of these a CPU multiplies bfloat16; others are several times slower at it than in float32."""


def machine() -> dict[str, Any]:
    """Linux says all of it; elsewhere some fields are empty."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    has = set(_cpuinfo("flags").split())
    return {
        "cpu": _cpuinfo("model name") or platform.processor(),
        "multiplies_with": [name for name, flag in FLAGS.items() if flag in has],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": _python(), **{name: version(name) for name in ("torch", "tokenizers")}},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
    }


def line(found: dict[str, Any]) -> str:
    """In one sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{found['cpu']} ({', '.join(found['multiplies_with']) or 'no AVX2'}), {found['cores']} cores, "
        f"{found['memory_gib']} GiB; {versions}; {found['date']}, commit {found['commit']}; load average at the start "
        f"{found['load_average']}."
    )


def _python() -> str:
    """Distributions build theirs with a profile of what runs often; one that was not is slower by an eighth."""
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return platform.python_version() + ("" if optimized else " (built without optimizations)")


def _cpuinfo(field: str) -> str:
    """Of the first core; "" where there is none."""
    path = Path("/proc/cpuinfo")
    for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
        name, _, value = text.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""

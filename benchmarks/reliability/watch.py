"""What a process holds and counts, from /proc and /metrics, and what machine this is. Knows no scenario."""

import asyncio
import os
import platform
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.reliability.load import every

_PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
_UNDER_WAY = ("assay_queue_tokens", "assay_queue_sequences", "assay_line_requests", "assay_requests_in_flight")


@dataclass(frozen=True, slots=True)
class Held:
    """rss: resident bytes. threads, files: how many are there now."""

    rss: int
    threads: int
    files: int


def held_by(pid: int) -> Held:
    process = Path(f"/proc/{pid}")
    resident = int((process / "statm").read_text().split()[1]) * _PAGE
    return Held(resident, len(os.listdir(process / "task")), len(os.listdir(process / "fd")))


class Watched:
    """A server from outside. scrapes: how often /metrics was read, since the server counts that too."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self.scrapes = 0

    def held(self) -> Held:
        return held_by(self.pid)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name and labels as they are written."""
        self.scrapes += 1
        text = await asyncio.to_thread(read, self.url, "/metrics")
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def at_rest(self, seconds: float = 30.0) -> bool:
        """Whether the server has nothing left to do, within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = await self.metrics()
            if sum(total(now, name) for name in _UNDER_WAY) == 0:
                return True
            await asyncio.sleep(0.1)
        return False

    async def settled(self, before: Held, seconds: float = 15.0) -> Held:
        """What it holds once it has closed what clients closed, or after so many seconds."""
        end = time.monotonic() + seconds
        while self.held().files > before.files and time.monotonic() < end:  # noqa: ASYNC110  # another process's files
            await asyncio.sleep(0.2)
        return self.held()

    @asynccontextmanager
    async def sampled(self, seconds: float = 0.25) -> AsyncIterator[list[Held]]:
        """What the process holds, again and again, while the block runs."""
        samples = [self.held()]
        stop = asyncio.Event()
        task = asyncio.create_task(every(seconds, lambda: samples.append(self.held()), stop))
        try:
            yield samples
        finally:
            stop.set()
            await task


def read(url: str, path: str) -> str:
    with urllib.request.urlopen(url + path, timeout=30) as answer:
        return str(answer.read().decode())


def total(samples: Mapping[str, float], name: str, *having: str) -> float:
    """The sum over a metric's labels, of those that have all these (`status="200"`)."""
    return sum(
        value
        for sample, value in samples.items()
        if sample.partition("{")[0] == name and all(label in sample for label in having)
    )


def by_label(samples: Mapping[str, float], name: str, label: str) -> Counter[str]:
    """A counter's values, added up by one of its labels."""
    sums: Counter[str] = Counter()
    for sample, value in samples.items():
        if sample.partition("{")[0] == name:
            sums[sample.partition(f'{label}="')[2].partition('"')[0]] += int(value)
    return sums


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * _PAGE / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
    }

"""Memory at rest and under load, and the time from a process's start to its first answer.

    python -m benchmarks.footprint [--model bert-base] [--rounds 3]

Memory is the resident set from /proc beyond the weights' bytes. A start is compared, in turn, with `import torch` and a
read of the weights' file, which any server of such a model pays.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import workload
from benchmarks.contender import Process
from benchmarks.http_load import LOAD
from benchmarks.models import MODELS, Model, folder_of
from benchmarks.plan import FULL, say
from benchmarks.servers import KINDS, Server, serving

_MIB = 2**20
_READ = """
import sys, torch
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read(2**24): pass
"""


def measure(model: Model, rounds: int, seconds: float) -> dict[str, Any]:
    """seconds: of each load. Starts are medians over rounds; memory is that of the last one."""
    folder = folder_of(model)
    weights = folder / "model.safetensors"
    workload.texts_of([16])  # so that what a benchmark needs is loaded before anything is timed
    starts, torches, memory = [], [], {}
    for number in range(rounds):
        say(f"{model.name}: start {number + 1} of {rounds}")
        torches.append(_seconds(lambda: _run(_READ, str(weights))))
        started = time.perf_counter()
        with serving("footprint", KINDS["assay"], folder) as server:
            starts.append(time.perf_counter() - started)
            if number == rounds - 1:
                memory = _memory(server, seconds)
    return {
        "model": model.name,
        "weights_mib": round(weights.stat().st_size / _MIB),
        "rounds": rounds,
        "memory_mib": {key: round(held) for key, held in memory.items()},
        "start_seconds": {
            "first_answer": round(median(starts), 2),
            "import_torch_and_read_weights": round(median(torches), 2),
            "difference": round(median(a - b for a, b in zip(starts, torches, strict=True)), 2),
        },
    }


def _memory(server: Server, seconds: float) -> dict[str, float]:
    """MiB. loading_peak: the most that it ever held until it was ready; load_…: the most under that load."""
    loading, rest = _status(server.pid, "VmHWM"), _status(server.pid, "VmRSS")
    found = {"loading_peak": loading, "rest": rest}
    loads = {"load_mixed_lengths": (workload.lengths(256), 64), "load_512_tokens": ([512] * 64, 16)}
    for name, (lengths, callers) in loads.items():
        say(f"memory under load: {name}")
        texts = workload.texts_of(lengths)
        bodies = [server.kind.body([text]) for text in texts]
        with Process(LOAD) as load, _watched(server.pid) as samples:
            load.ask(
                "load",
                port=server.port,
                path=server.kind.path,
                bodies=bodies,
                order=[i % len(bodies) for i in range(10_000)],
                callers=callers,
                seconds=seconds,
            )
        found[name] = max(samples)
    return found


@contextmanager
def _watched(pid: int) -> Iterator[list[float]]:
    """Resident MiB, ten times a second, while the block runs."""
    samples = [_status(pid, "VmRSS")]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            samples.append(_status(pid, "VmRSS"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _status(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/status has no {field}; this needs Linux")


def _run(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(report: dict[str, Any]) -> str:
    weights = report["weights_mib"]
    lines = [f"weights {weights} MiB"]
    lines += [f"{name:18} {held:6} MiB = weights + {held - weights}" for name, held in report["memory_mib"].items()]
    return "\n".join([*lines, f"seconds from the start: {report['start_seconds']}"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default=FULL.footprint)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    report = measure(MODELS[arguments.model], arguments.rounds, FULL.footprint_seconds)
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""What the HTTP front costs by itself: a server whose model computes nothing, held to one core, the load on another.

    python -m benchmarks.front [--rounds 9] [--callers 64]

A request's whole life is there (protocol, JSON, tokenizer, queue, batch, answer) but for the model's arithmetic. Beside
it, in the same rounds, uvicorn with an application that answers a constant: what HTTP alone costs on this core, today.
"""

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contender import ContenderError, Process
from benchmarks.http_load import LOAD
from benchmarks.models import MODELS, folder_of
from benchmarks.plan import FULL, say
from benchmarks.servers import Kind, assay, serving

_TEXT = "Loved the new café, coffee was great."
_WORKERS = Path(__file__).parent / "workers"
_SCRIPT = (str(_WORKERS / "null_server.py"),)


def _bare() -> Kind:
    def command(python: Path, folder: Path, port: int) -> list[str]:
        options = f"--host 127.0.0.1 --port {port} --log-level warning --no-access-log --app-dir {_WORKERS}"
        return [str(python), "-m", "uvicorn", "bare_server:app", *options.split()]

    return Kind("", command, "/", lambda texts: {"input": texts})


_BARE = "bare uvicorn"
_ONE = "1 text"
REQUESTS: dict[str, Any] = {
    _ONE: {"input": _TEXT},
    "32 texts": {"input": [f"{_TEXT} {i}" for i in range(32)]},  # of equal ones, one is computed
    "1 text as token ids": {"input": [101, 3866, 1996, 2047, 7668, 1010, 4157, 2001, 2307, 1012, 102]},
}
KINDS = {
    "no access log": assay(module=_SCRIPT),
    "default access log": assay("--access-log", "json", module=_SCRIPT),
    _BARE: _bare(),
}


def measure(rounds: int, seconds: float, callers: int = 64) -> dict[str, Any]:
    """Requests a second of each kind of request, medians over rounds; cores: whether the load had one of its own."""
    cores = sorted(os.sched_getaffinity(0))
    folder = folder_of(MODELS["tiny"])
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        load = stack.enter_context(Process(LOAD))
        os.sched_setaffinity(load.pid, {cores[-1]})
        servers = {
            name: stack.enter_context(serving(f"front-{i}", kind, folder, core=cores[0]))
            for i, (name, kind) in enumerate(KINDS.items())
        }
        for server in servers.values():
            server.pause()
        for number in range(rounds):
            say(f"the front: round {number + 1} of {rounds}")
            for name, server in servers.items():
                server.resume()
                for request, body in REQUESTS.items():
                    if name == _BARE and request != _ONE:
                        continue
                    point = _ask(load, server.port, KINDS[name], body, callers, seconds)
                    found.setdefault(name, {}).setdefault(request, []).append(point)
                server.pause()
    return {
        "rounds": rounds,
        "callers": callers,
        "single_text_requests_per_second": {
            name: [round(one["requests_per_second"]) for one in by[_ONE]] for name, by in found.items()
        },
        "load_on_its_own_core": len(cores) > 1,
        "requests": {
            name: {
                request: {key: round(median(one[key] for one in same), 3) for key in same[0]}
                for request, same in by.items()
            }
            for name, by in found.items()
        },
    }


def _ask(load: Process, port: int, kind: Kind, body: Any, callers: int, seconds: float) -> dict[str, float]:
    order = [0] * int(30_000 * seconds)  # more than any server answers in the time
    found = load.ask("load", port=port, path=kind.path, bodies=[body], order=order, callers=callers, seconds=seconds)
    if set(found["statuses"]) != {"200"}:
        raise ContenderError(f"{callers} callers got {found['statuses']}")
    return {
        "requests_per_second": len(found["answered"]) / found["seconds"],
        "p50_ms": 1000 * median(found["latencies"]),
        "load_cpu_share_of_its_core": found["cpu_seconds"] / found["seconds"],
    }


def table(report: dict[str, Any]) -> str:
    return "\n".join(
        f"{name:20} {request:22} {one['requests_per_second']:8.0f} requests/s  p50 {one['p50_ms']:6.2f} ms  "
        f"load generator {one['load_cpu_share_of_its_core']:.0%} of its core"
        for name, by in report["requests"].items()
        for request, one in by.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    report = measure(arguments.rounds, FULL.front_seconds, arguments.callers)
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

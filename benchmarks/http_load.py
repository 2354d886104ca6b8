"""Throughput and latency behind HTTP for each server, from 1 to 256 callers, and against the engine in-process.

    python -m benchmarks.http_load [--model minilm] [--rounds 3] [--only assay,infinity-torch]

Every round goes through all servers and numbers of callers in turn; the servers whose turn it is not are stopped
(SIGSTOP). One text a request, every text once. Figures are medians over rounds.
"""

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import workload
from benchmarks.contender import Contender, ContenderError, Process
from benchmarks.inprocess import contender, counted
from benchmarks.models import MODELS, Model, folder_of
from benchmarks.plan import FULL, SMOKE, say
from benchmarks.servers import KINDS, Server, serving

LOAD = Contender("load", "load_worker")
DEFAULT = ("assay", "infinity-torch", "infinity-onnx", "pipeline-fastapi")
_COMPARED_CALLERS = 64
_WARM_UP_SECONDS = 2.0


def measure(
    model: Model, names: tuple[str, ...], callers: tuple[int, ...], count: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Server → number of callers → figures; and ours against the same engine in-process, on the same texts."""
    folder = folder_of(model)
    texts = workload.texts(count)  # at least as many as callers: nobody is helped by a text that another asks for too
    tokens = counted(folder, texts)
    report: dict[str, Any] = {"workload": workload.describe(texts, tokens), "rounds": rounds, "seconds": seconds}
    with ExitStack() as stack:
        load = stack.enter_context(Process(LOAD))
        engine = stack.enter_context(Process(contender("assay", model)))
        engine.ask("load", model=str(folder), texts=str(workload.saved(f"{model.name}-http", texts)), options={})
        engine.ask("score", mode="packed")
        servers, problems = _started(names, folder, load, texts, tokens, stack)
        points: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in servers}
        whole: list[dict[str, Any]] = []
        for number in range(rounds):
            for name, server in _turned(servers, number):
                say(f"{model.name} behind HTTP: round {number + 1} of {rounds}, {name}")
                try:
                    for many in callers:
                        point = ask(load, server, texts, tokens, many, seconds)
                        points[name].setdefault(many, []).append(point)
                    if name == "assay":
                        whole.append(_both(load, engine, server, texts, tokens))
                except (ContenderError, OSError) as error:
                    problems[name] = str(error)
                    say(f"{name} is out: {error}")
                    del servers[name]
        report["servers"] = {
            name: {str(many): _medians(same) for many, same in by.items()} for name, by in points.items()
        }
        report["problems"] = problems
        if whole:
            report["http_against_in_process"] = _medians(whole)
    return report


def ask(
    load: Process, server: Server, texts: list[str], tokens: list[int], callers: int, seconds: float
) -> dict[str, Any]:
    """One run of the load generator, on a server that is awake meanwhile. Raises ContenderError where an answer is not
    200: refusals are no speed.
    """
    bodies = [server.kind.body([text]) for text in texts]
    order = list(range(len(texts)))
    arguments = {"bodies": bodies, "order": order, "callers": callers, "seconds": seconds}
    server.resume()
    try:
        found = load.ask("load", port=server.port, path=server.kind.path, **arguments)
    finally:
        server.pause()
    if set(found["statuses"]) != {"200"}:
        raise ContenderError(f"{callers} callers got {found['statuses']}")
    good = len(found["answered"])
    answered = sum(tokens[i] for i in found["answered"])
    ordered = sorted(found["latencies"])
    return {
        "requests_per_second": good / found["seconds"],
        "tokens_per_second": answered / found["seconds"],
        "p50_ms": 1000 * median(ordered),
        "p99_ms": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "load_cpu_share": found["cpu_seconds"] / found["seconds"] / _cores(),
    }


def _both(load: Process, engine: Process, server: Server, texts: list[str], tokens: list[int]) -> dict[str, Any]:
    """All texts behind HTTP with 64 callers, and in-process, one right after the other."""
    alone = engine.ask("score", mode="packed")["seconds"]
    served = ask(load, server, texts, tokens, _COMPARED_CALLERS, 600.0)
    in_process = sum(tokens) / alone
    share = served["tokens_per_second"] / in_process
    return {
        "callers": _COMPARED_CALLERS,
        "in_process_tokens_per_second": in_process,
        "http_tokens_per_second": served["tokens_per_second"],
        "share": share,
        "load_cpu_share": served["load_cpu_share"],
        "share_of_what_the_load_generator_leaves": share / (1 - served["load_cpu_share"]),
    }


def _started(
    names: tuple[str, ...], folder: Path, load: Process, texts: list[str], tokens: list[int], stack: ExitStack
) -> tuple[dict[str, Server], dict[str, str]]:
    """The servers that answer, warm and paused; and why the others do not."""
    servers: dict[str, Server] = {}
    problems: dict[str, str] = {}
    for name in names:
        say(f"{name} starts")
        try:
            servers[name] = stack.enter_context(serving(name, KINDS[name], folder))
            ask(load, servers[name], texts, tokens, min(_COMPARED_CALLERS, len(texts)), _WARM_UP_SECONDS)
        except (ContenderError, OSError) as error:
            problems[name] = str(error)
            servers.pop(name, None)
            say(f"{name} did not start: {error}")
    return servers, problems


def _turned(servers: dict[str, Server], number: int) -> list[tuple[str, Server]]:
    listed = list(servers.items())
    ahead = number % len(listed) if listed else 0
    return listed[ahead:] + listed[:ahead]


def _medians(same: list[dict[str, Any]]) -> dict[str, float]:
    """Key by key."""
    return {key: round(median(one[key] for one in same), 3) for key in same[0]}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def table(report: dict[str, Any]) -> str:
    """For the terminal."""
    lines = [str(report["workload"])]
    for name, by in report["servers"].items():
        lines += [
            f"{name:18} {many:>4} callers {one['requests_per_second']:8.1f} requests/s {one['tokens_per_second']:8.0f} "
            f"tokens/s  p50 {one['p50_ms']:8.1f} ms  p99 {one['p99_ms']:8.1f} ms  (load {one['load_cpu_share']:.1%})"
            for many, one in by.items()
        ]
    lines += [f"{name:18} did not run: {problem}" for name, problem in report["problems"].items()]
    lines.append(f"HTTP against in-process: {report.get('http_against_in_process')}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_load", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"servers, comma-separated, of {', '.join(KINDS)}")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    names = tuple(arguments.only.split(",")) if arguments.only else DEFAULT
    plan = FULL if arguments.model != "tiny" else SMOKE
    report = measure(
        MODELS[arguments.model], names, plan.callers, plan.served_texts, arguments.rounds, plan.served_seconds
    )
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

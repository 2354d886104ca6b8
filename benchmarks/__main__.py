"""`python -m benchmarks`, or `make bench`: everything in turn, into JSON files, a table and a plot.

    python -m benchmarks [--quick] [--only throughput --only http] [--output FOLDER]

Measure on a quiet machine. What is measured and how: benchmarks/README.md. A part that fails says why in its file, and
the others go on. Exit code 1 where one failed.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import fairness, footprint, front, http_load, inprocess, quality
from benchmarks.contender import ContenderError
from benchmarks.machine import machine
from benchmarks.models import BUILD, MODELS, REPOSITORY
from benchmarks.plan import FULL, QUICK, SMOKE, Plan, say
from benchmarks.plot import plot
from benchmarks.prepare import prepare
from benchmarks.tables import document

Report = dict[str, Any]
RESULTS = REPOSITORY / "benchmarks" / "results"
_QUIET = 0.5  # a load average above it is told


def throughput(plan: Plan) -> Report:
    """Model by model; one that fails does not end the others."""
    models: Report = {}
    for name, race in plan.races.items():
        try:
            models[name] = inprocess.measure(MODELS[name], race, plan.single_seconds)
            print(inprocess.table(models[name]), flush=True)
        except ContenderError as error:
            models[name] = {"problem": str(error)}
    return {"models": models}


def http(plan: Plan) -> Report:
    model = MODELS[plan.served]
    report = http_load.measure(
        model, http_load.DEFAULT, plan.callers, plan.served_texts, plan.served_rounds, plan.served_seconds
    )
    print(http_load.table(report), flush=True)
    return {"model": model.name, **report}


def _front(plan: Plan) -> Report:
    report = front.measure(plan.front_rounds, plan.front_seconds)
    print(front.table(report), flush=True)
    return report


def _fairness(plan: Plan) -> Report:
    report = fairness.measure(MODELS[plan.fairness], plan.fairness_seconds)
    print(fairness.table(report), flush=True)
    return report


def _footprint(plan: Plan) -> Report:
    report = footprint.measure(MODELS[plan.footprint], plan.footprint_rounds, plan.footprint_seconds)
    print(footprint.table(report), flush=True)
    return report


def _quality(plan: Plan) -> Report:
    report = quality.measure(plan.quality_texts)
    print(quality.table(report), flush=True)
    return report


PARTS: dict[str, Callable[[Plan], Report]] = {
    "throughput": throughput,
    "http": http,
    "front": _front,
    "fairness": _fairness,
    "footprint": _footprint,
    "quality": _quality,
}
_WITH_PEERS = {"throughput", "http"}


def run(part: str, plan: Plan) -> Report:
    """Its report, with where, how much and how long; or with the problem that ended it."""
    found: Report = {"machine": machine(), "plan": plan.name}
    if found["machine"]["load_average"] > _QUIET:
        say(f"the machine is not quiet: its load average is {found['machine']['load_average']}")
    started = time.perf_counter()
    try:
        found |= PARTS[part](plan)
    except (ContenderError, OSError) as error:
        found["problem"] = str(error)
        say(f"{part} did not run: {error}")
    return {**found, "seconds": round(time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", dest="plan", const=QUICK, help="five minutes, two models")
    size.add_argument("--smoke", action="store_const", dest="plan", const=SMOKE, help="every step once, a tiny model")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--output", type=Path, help="folder; default: benchmarks/results, or build/bench/results/PLAN")
    arguments = parser.parse_args()
    plan: Plan = arguments.plan or FULL
    folder: Path = arguments.output or (RESULTS if plan is FULL else BUILD / "results" / plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or forks of this process complain
    names = arguments.only or list(PARTS)
    if _WITH_PEERS & set(names):
        _write(folder / "peers.json", prepare(plan))
    failed = []
    for name in names:
        say(f"{name} begins")
        report = run(name, plan)
        _write(folder / f"{name}.json", report)
        failed += [name] if "problem" in report else []
        say(f"{name} took {report['seconds']} s")
    summarize(folder)
    sys.exit(f"did not run: {', '.join(failed)}" if failed else 0)


def summarize(folder: Path) -> None:
    """The table and the plot of all results that lie there, whenever they were measured."""
    reports = {name: _read(folder / f"{name}.json") for name in PARTS if (folder / f"{name}.json").is_file()}
    peers = _read(folder / "peers.json") if (folder / "peers.json").is_file() else {}
    if reports.get("http", {}).get("servers"):
        plot(reports["http"], folder / "http.svg")
    how = os.path.relpath(REPOSITORY / "benchmarks" / "README.md", folder)
    (folder / "README.md").write_text(document(reports, peers, how), "utf-8")
    say(f"written: {folder / 'README.md'}")


def _read(path: Path) -> Report:
    content: Report = json.loads(path.read_text("utf-8"))
    return content


def _write(path: Path, report: Report) -> None:
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()

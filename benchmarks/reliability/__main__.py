"""`python -m benchmarks.reliability`: every scenario against a real server, and a file of what came of it.

python -m benchmarks.reliability --only soak --minutes 30
python -m benchmarks.reliability --output benchmarks/results/reliability.json
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability import overload, soak, twenty_thousand
from benchmarks.reliability.watch import Watched, machine
from tests.e2e.process import Server, serving
from tests.tiny import save_bert

Report = dict[str, Any]

_SHOWN = 30  # lines of a log, from its first error on


def run_overload(folder: Path, seconds: float = 20.0, **plan: float) -> Report:
    """With the bundled model, where a request is work, and a queue of about a second and a half."""
    with serving(None) as server:
        queue_tokens = overload.measured_queue(server.url)
    with serving(None, "--max-queue-tokens", str(queue_tokens)) as server:
        report = asyncio.run(overload.run(_watched(server), overload.Plan(queue_tokens, seconds, **plan)))
        return _judged({"queue_tokens": queue_tokens, **report}, overload.problems, server)


def run_soak(folder: Path, seconds: float = 90.0, warm_up: float = 15.0) -> Report:
    with serving(folder, *soak.OPTIONS, lifetime=warm_up + seconds + 300) as server:
        report = asyncio.run(soak.run(_watched(server), seconds, warm_up))
        return _judged(report, soak.problems, server)


def run_twenty_thousand(folder: Path, count: int = twenty_thousand.COUNT, deterministic: bool = True) -> Report:
    """deterministic: as bit-equality needs."""
    with serving(folder, *(twenty_thousand.DETERMINISTIC if deterministic else ())) as server:
        report = asyncio.run(twenty_thousand.run(_watched(server), count))
        return _judged(report, lambda found: twenty_thousand.problems(found, deterministic), server)


def run_twenty_thousand_by_default(folder: Path) -> Report:
    return run_twenty_thousand(folder, deterministic=False)


def _watched(server: Server) -> Watched:
    return Watched(server.url, server.process.pid)


def _judged(report: Report, problems: Callable[[Report], list[str]], server: Server) -> Report:
    """With what every scenario asks at its end: no error in the log, and a process that ends well."""
    server.process.terminate()
    report["exit_code"] = server.wait(60)
    lines = server.log().splitlines()
    errors = [
        place
        for place, line in enumerate(lines)
        if " ERROR " in line or " CRITICAL " in line or line.startswith("Traceback")
    ]
    report["errors_in_the_log"] = len(errors)
    found = problems(report)
    if report["exit_code"] != 0:
        found.append("the process ends with 0 on SIGTERM")
    if report["errors_in_the_log"]:
        found.append("no error in the log, but there is " + "\n".join(lines[errors[0] : errors[0] + _SHOWN]))
    return {**report, "problems": found}


SCENARIOS: dict[str, Callable[..., Report]] = {
    "overload": run_overload,
    "soak": run_soak,
    "twenty_thousand": run_twenty_thousand,
    "twenty_thousand_by_default": run_twenty_thousand_by_default,
}


def main() -> None:
    """Exit code 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="this scenario; may be repeated")
    parser.add_argument("--minutes", type=float, default=5, help="of the soak")
    parser.add_argument("--output", type=Path, help="write the reports into this JSON file, beside those already there")
    arguments = parser.parse_args()
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as name:
        save_bert(Path(name), num_hidden_layers=1)
        for scenario in arguments.only or SCENARIOS:
            options = {"seconds": arguments.minutes * 60} if scenario == "soak" else {}
            reports[scenario] = {"machine": machine(), **SCENARIOS[scenario](Path(name), **options)}
            print(json.dumps({scenario: reports[scenario]}, indent=1), flush=True)
    if arguments.output:
        path: Path = arguments.output
        earlier = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**earlier, **reports}, indent=1, sort_keys=True) + "\n", "utf-8")
    failed = [f"{name}: {', '.join(report['problems'])}" for name, report in reports.items() if report["problems"]]
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()

"""A contender's side of the talk: a JSON line in, a JSON line out. Standard library only, for any environment."""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

Command = Callable[..., Any]


def answer(commands: dict[str, Command]) -> None:
    """Do what stdin's lines ask, {"do": name, ...}, until it ends. What libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = {"answer": commands[asked.pop("do")](**asked)}
        except Exception as error:  # an edge: whoever asked is told, and writes it into the results
            traceback.print_exc()
            message = str(error).strip().splitlines()
            reply = {"problem": f"{type(error).__name__}: {message[-1] if message else ''}"[:400]}
        out.write(json.dumps(reply) + "\n")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the wall, and of this process's CPU."""
    before, started = _cpu(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu() - before}


def latencies(work: Callable[[], Any], seconds: float, least: int = 3) -> list[float]:
    """Seconds of one call after another, for so long."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < least:
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def read_texts(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        content: list[str] = json.load(file)
    return content


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

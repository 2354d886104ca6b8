"""A contender in a process of its own, asked line by line: each has its libraries, threads and memory to itself.

Knows not what is measured. Workers are the files in benchmarks/workers; their other half of the talk is lines.py.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.envs import install
from benchmarks.models import BUILD

_WORKERS = Path(__file__).parent / "workers"
_LEFT_OUT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
)  # whoever runs the benchmark has them, nobody in it
_ERROR = re.compile(r"[\w.]+(Error|Exception|Argument)\b")


@dataclass(frozen=True, slots=True)
class Contender:
    """worker: a file in benchmarks/workers. peer: whose environment it needs; "" is our own. precision: compare only
    like with like. options: for an engine of ours, fields of EngineConfig; environ: on top of the environment.
    """

    name: str
    worker: str
    peer: str = ""
    precision: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)


class ContenderError(Exception):
    """It does not install, load or answer; the message goes into the results."""


class Process:
    """A running contender. Used as a `with` block; it ends with it, and after `lifetime` seconds in any case."""

    def __init__(self, contender: Contender, lifetime: float = 3600.0) -> None:
        python = interpreter(contender.peer)
        self._log = BUILD / "logs" / f"{contender.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(_WORKERS / f"{contender.worker}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**environment(), "TOKENIZERS_PARALLELISM": "true", **contender.environ},
            )
        self.pid = self._process.pid
        self._timer = threading.Timer(lifetime, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def ask(self, what: str, **arguments: Any) -> Any:
        """Its answer. Raises ContenderError when it fails or is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait(10)
            raise ContenderError(f"ended with {self._process.returncode}: {last_words(self._log)}")
        try:
            reply = json.loads(line)
        except ValueError:
            raise ContenderError(f"said {line[:200]!r}, which is no answer") from None
        if "problem" in reply:
            raise ContenderError(reply["problem"])
        return reply["answer"]

    def close(self) -> None:
        self._timer.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def interpreter(peer: str) -> Path:
    """Of the peer's environment, "" being our own. Raises ContenderError where it cannot be installed."""
    if not peer:
        return Path(sys.executable)
    installed = install(peer)
    if installed.python is None:
        raise ContenderError(f"pip: {installed.problem}")
    return installed.python


def environment() -> dict[str, str]:
    """What every contender starts with, without the settings of threads that only the benchmark itself was given."""
    return {**{name: value for name, value in os.environ.items() if name not in _LEFT_OUT}, "HF_HUB_OFFLINE": "1"}


def last_words(log: Path) -> str:
    """The last line that begins with an error's name, or the last one."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["nothing in its log"])[-1][:400]

"""Clients from PyPI that cannot be installed beside ours, each in an environment of its own. Knows no test.

litellm pins older releases of openai and huggingface_hub, nemoguardrails one of huggingface_hub. A function of ours is
sent there as its source and run there, and its result comes back as JSON; so it imports what it needs itself.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.e2e.process import REPOSITORY, alone

_ENVIRONMENTS = REPOSITORY / "build" / "clients"
_LIFETIME = 300.0  # seconds after which a forgotten process is killed
# fastapi is what some of the guardrails of LiteLLM's proxy import; the proxy itself is not started.
CLIENTS = {"litellm": ("litellm==1.106.2", "fastapi"), "nemoguardrails": ("nemoguardrails==0.24.1",)}
# Neither asks the internet for anything at its start.
VARIABLES = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "CRITICAL", "HF_HUB_OFFLINE": "1"}


class ClientError(Exception):
    """An exception of the client. kinds: its class and those above it, by name. status: its `status_code`, if any."""

    def __init__(self, kinds: list[str], status: int | None, message: str) -> None:
        super().__init__(f"{kinds[0]}: {message}")
        self.kinds, self.status, self.message = kinds, status, message


@dataclass
class Foreign:
    """A process of a client's environment."""

    process: subprocess.Popen[str]
    stderr: IO[str]

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` there, to its end if it is async. Arguments and result are JSON. Raises ClientError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        source = "from __future__ import annotations\n" + textwrap.dedent(inspect.getsource(function))
        order = {"source": source, "name": function.__name__, "args": args, "kwargs": kwargs}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.stderr.seek(0)
            raise AssertionError(f"the client's process ended:\n{self.stderr.read()[-3000:]}")
        answer = json.loads(line)
        if "kinds" in answer:
            raise ClientError(**answer)
        return answer["result"]


def python(name: str) -> Path:
    """The interpreter of a client's environment, which is made on first use."""
    folder, requirements = _ENVIRONMENTS / name, CLIENTS[name]
    done = folder / f"installed-{'-'.join(requirements)}"
    with alone(folder):
        if done.is_file():
            return folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "pip", "--disable-pip-version-check", "install", "--quiet", *requirements]
        subprocess.run(pip, check=True, capture_output=True, timeout=400)
        done.touch()
    return folder / "bin" / "python"


@contextmanager
def foreign(name: str) -> Iterator[Foreign]:
    """A client's process for the length of a `with` block."""
    command = [python(name), "-c", f"{inspect.getsource(_obey)}\n_obey()"]
    with tempfile.TemporaryFile("w+") as stderr:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
        process = subprocess.Popen(command, **pipes, text=True, cwd=_ENVIRONMENTS, env={**os.environ, **VARIABLES})
        watchdog = threading.Timer(_LIFETIME, process.kill)
        watchdog.start()
        try:
            yield Foreign(process, stderr)
        finally:
            watchdog.cancel()
            process.kill()  # it has nothing to save
            process.communicate()


def _obey() -> None:
    """Runs in the other environment: one order a line comes in, one answer a line goes out."""
    import asyncio
    import json
    import sys

    answers, sys.stdout = sys.stdout, sys.stderr  # what clients print must not get between the answers
    for line in sys.stdin:
        order = json.loads(line)
        names: dict = {}
        try:
            exec(order["source"], names)
            result = names[order["name"]](*order["args"], **order["kwargs"])
            answer = {"result": asyncio.run(result) if asyncio.iscoroutine(result) else result}
        except Exception as error:  # an edge: the test is told, whatever it is
            kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-2]]
            answer = {"kinds": kinds, "status": getattr(error, "status_code", None), "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)

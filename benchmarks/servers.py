"""The servers that are compared: how each is started, asked and stopped. Knows no load and no measure.

All listen on 127.0.0.1, are quiet (no access log), and are stopped by their own process ids.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contender import ContenderError, environment, interpreter, last_words
from benchmarks.models import BUILD, REPOSITORY

_WORKERS = Path(__file__).parent / "workers"
_START_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Kind:
    """peer: whose environment it needs. command: interpreter, folder, port → the command line. path, body: of a request
    with these texts. environ: beside the usual."""

    peer: str
    command: Callable[[Path, Path, int], list[str]]
    path: str
    body: Callable[[list[str]], dict[str, Any]]
    environ: Callable[[Path], dict[str, str]] = lambda folder: {}


def assay(*options: str, module: tuple[str, ...] = ("-m", "assay")) -> Kind:
    """Ours, with more options of `assay serve`."""
    quiet = ("--access-log", "none", "--log-level", "warning")

    def command(python: Path, folder: Path, port: int) -> list[str]:
        named = [str(python), *module, "serve", f"bench={folder}", "--port", str(port)]
        return [*named, *(quiet if "--access-log" not in options else ()), *options]

    return Kind("", command, "/v1/classify", lambda texts: {"input": texts})


def _infinity(engine: str) -> Kind:
    def command(python: Path, folder: Path, port: int) -> list[str]:
        model = _for_infinity(folder, with_graph=engine == "optimum")
        options = f"--engine {engine} --device cpu --dtype float32 --served-model-name bench --host 127.0.0.1"
        # BetterTransformer is no faster here; its own warm-up sends the ONNX engine longer texts than a model takes.
        more = "--no-bettertransformer --no-model-warmup --batch-size 32 --log-level error"
        named = [str(python), str(_WORKERS / "infinity_cli.py"), str(model), "v2", "--model-id", "."]
        return [*named, "--url-prefix", "", "--port", str(port), *options.split(), *more.split()]

    def environ(folder: Path) -> dict[str, str]:
        """It writes the graph that it optimizes into this cache, and takes any that it finds there."""
        cache = BUILD / "infinity-cache" / folder.name
        shutil.rmtree(cache, ignore_errors=True)
        return {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HOME": str(cache)}

    return Kind("infinity", command, "/classify", lambda texts: {"model": "bench", "input": texts}, environ)


def _pipeline() -> Kind:
    def command(python: Path, folder: Path, port: int) -> list[str]:
        options = f"--host 127.0.0.1 --port {port} --log-level warning --app-dir {_WORKERS}"
        return [str(python), "-m", "uvicorn", "pipeline_app:app", *options.split()]

    return Kind("pipeline", command, "/classify", lambda texts: {"input": texts}, lambda folder: {"MODEL": str(folder)})


KINDS = {
    "assay": assay(),
    "assay-int8": assay("--quantization", "int8"),
    "assay-bf16": assay("--dtype", "bfloat16"),
    "infinity-torch": _infinity("torch"),
    "infinity-onnx": _infinity("optimum"),
    "pipeline-fastapi": _pipeline(),
}


class Server:
    """A running server. pid, port: its own. Between its turns it is stopped: what idles costs others nothing."""

    def __init__(self, kind: Kind, process: subprocess.Popen[bytes], port: int) -> None:
        self.kind = kind
        self.pid = process.pid
        self.port = port
        self._process = process

    def ask(self, texts: list[str], timeout: float = 60.0) -> Any:
        """One request, decoded. Raises OSError."""
        body = json.dumps(self.kind.body(texts)).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.kind.path}", body, headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """One that has ended is heard of when it is asked."""
        if self._process.poll() is None:
            os.killpg(self.pid, number)


@contextmanager
def serving(name: str, kind: Kind, folder: Path, core: int | None = None) -> Iterator[Server]:
    """A server for the length of a `with` block. core: the only one that it may use. Raises ContenderError."""
    python = interpreter(kind.peer)
    port = _free_port()
    log_path = BUILD / "logs" / f"server-{name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            kind.command(python, folder, port),
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
            env={**environment(), **kind.environ(folder)},
            start_new_session=True,
        )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    server = Server(kind, process, port)
    try:
        wait_until_it_answers(server, process, log_path)
        yield server
    finally:
        server.resume()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a request is answered with 200."""
    end = time.monotonic() + _START_SECONDS
    problem = ""
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ContenderError(f"the server ended with {process.returncode}: {last_words(log)}")
        try:
            server.ask(["warm up"])
            return
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.read()[:200]!r}"
        except OSError as error:
            problem = str(error)
        time.sleep(0.02)
    raise ContenderError(f"no answer within {_START_SECONDS:g} s: {problem}")


def _for_infinity(folder: Path, with_graph: bool) -> Path:
    """The checkpoint with the ONNX graph that it looks for, or without any."""
    target = folder.with_name(f"{folder.name}-infinity{'-onnx' if with_graph else ''}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (target / file.name).symlink_to(file)
    if with_graph:
        graphs = list((folder / "onnx").glob("model.onnx*"))
        if not graphs:
            raise ContenderError("there is no ONNX graph: the contender `onnx` of benchmarks.inprocess exports it")
        for file in graphs:
            shutil.copy(file, target / file.name)
    return target


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

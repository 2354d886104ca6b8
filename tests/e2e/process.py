"""Servers to test against: the application inside this process, or `assay serve` as a process of its own.

Knows no expectations. Every real server is bounded in time and ended by its own process, whatever the test does.
"""

import asyncio
import contextlib
import fcntl
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from assay.config import EngineConfig, ServerConfig
from assay.engine.engine import Engine
from assay.server.app import build_app
from assay.server.service import Service

REPOSITORY = Path(__file__).parents[2]
_LIFETIME = 600.0  # seconds after which a forgotten process is killed


@dataclass
class InProcess:
    """The application behind httpx, without sockets. Errors of ours become answers, as they do under uvicorn."""

    service: Service
    app: Any
    client: httpx.AsyncClient

    async def classify(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/classify", json=body)


@asynccontextmanager
async def in_process(
    model: Path | str, load: Callable[..., Any] = Engine.load, wait: bool = True, engine: Any = None, **server: Any
) -> AsyncIterator[InProcess]:
    """Run the application's lifespan; with `wait`, until it is loaded. `engine` holds fields of EngineConfig."""
    service = Service(ServerConfig(**server), EngineConfig(model=str(model), **(engine or {})), load)
    loaded = asyncio.Event()
    app = build_app(service, lambda error: loaded.set())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        if wait:
            await loaded.wait()
        yield InProcess(service, app, client)


@dataclass
class Server:
    """A running `assay serve`. ready: its one line, or "" where nobody has waited for it."""

    process: subprocess.Popen[str]
    stderr: IO[str]
    port: int
    ready: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """What it has written to stderr so far."""
        self.stderr.seek(0)
        return self.stderr.read()

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().strip()
        assert self.ready, f"the server ended before it was ready:\n{self.log()}"
        address = self.ready.partition("http://")[2].partition(": ")[0]
        self.port = int(address.rpartition(":")[2])

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit code. Raises TimeoutExpired."""
        return self.process.wait(seconds)

    def wait_status(self, path: str, status: int, seconds: float = 30.0) -> httpx.Response:
        """Poll until a path answers with a status."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                response = httpx.get(self.url + path, timeout=5)
                if response.status_code == status:
                    return response
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer {status} within {seconds} s:\n{self.log()}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else, in whatever process, makes this folder meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def serving(
    model: Path | str | None,
    *options: str,
    port: int = 0,
    wait: bool = True,
    module: tuple[str, ...] = ("assay",),
    lifetime: float = _LIFETIME,
) -> Iterator[Server]:
    """`python -m assay serve` for the length of a `with` block. Without `wait`, name a port: nothing says it yet.

    module: what is run in place of assay, and its own arguments. lifetime: seconds after which it is killed.
    """
    command = [sys.executable, "-m", *module, "serve", *([str(model)] if model else []), "--port", str(port), *options]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=REPOSITORY)
        watchdog = threading.Timer(lifetime, process.kill)
        watchdog.start()
        server = Server(process, stderr, port)
        try:
            if wait:
                server.wait_ready()
            yield server
        finally:
            watchdog.cancel()
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    if process.stdout is not None:
        process.stdout.close()


def free_port() -> int:
    """A port that was free a moment ago, for a server whose port must be known before it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_assay(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """`python -m assay …` to its end."""
    command = [sys.executable, "-m", "assay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, check=False)

"""Gateways from PyPI, unmodified, each in an environment of its own, since their packages clash. Knows no test."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.e2e.process import REPOSITORY, alone, free_port

_ENVIRONMENTS = REPOSITORY / "build" / "gateways"
_LIFETIME = 240.0  # a gateway that a test forgets ends by itself

_HEALTH = (
    "--request-timeout-secs 30 --health-check-interval-secs 1 --health-check-timeout-secs 1 "
    "--health-failure-threshold 2 --health-success-threshold 1"
)

# name → (requirement, command, options). The flags are those of docs/scale.md.
GATEWAYS = {
    "sglang-router": (
        "sglang-router==0.3.2",
        "sglang-router launch",
        "--policy cache_aware --cache-threshold 1.0 --balance-abs-threshold 0 --balance-rel-threshold 1.0 "
        f"--cb-timeout-duration-secs 5 {_HEALTH}",
    ),
    "smg": ("smg==1.13.0", "smg launch", f"--policy least_load {_HEALTH}"),
    "vllm-router": (
        "vllm-router==0.1.17",
        "vllm-router",
        f"--policy round_robin --cb-timeout-duration-secs 2 --cb-success-threshold 1 {_HEALTH}",
    ),
}


def environment(name: str) -> Path:
    """The folder of commands of a gateway's environment, made on first use."""
    folder = _ENVIRONMENTS / name
    requirement = GATEWAYS[name][0]
    done = folder / f"installed-{requirement}"
    with alone(folder):
        if done.is_file():
            return folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "pip", "--disable-pip-version-check", "install", "--quiet", requirement]
        subprocess.run(pip, check=True, capture_output=True, timeout=300)
        done.touch()
    return folder / "bin"


@contextmanager
def gateway(name: str, workers: list[str], log: Path, *options: str, key: str = "") -> Iterator[str]:
    """A gateway in front of workers, for the length of a `with` block; gives its URL once it routes to them.

    key: one that the workers know, to ask whether it routes.
    """
    port = free_port()
    program, *subcommand = GATEWAYS[name][1].split()
    command = [
        environment(name) / program,
        *subcommand,
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        *("--worker-urls", *workers),
        *GATEWAYS[name][2].split(),
        *options,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
        watchdog = threading.Timer(_LIFETIME, process.kill)
        watchdog.start()
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_routes(url, log, bearer(key))
            yield url
        finally:
            watchdog.cancel()
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _wait_until_it_routes(url: str, log: Path, headers: dict[str, str], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    body = {"model": "tiny", "input": "great"}
    while time.monotonic() < deadline:
        try:
            if httpx.post(f"{url}/v1/classify", json=body, headers=headers, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the gateway routed nothing within {seconds} s:\n{log.read_text()[-3000:]}")


def workers_of(url: str, key: str = "") -> dict[str, dict[str, Any]]:
    """What a gateway says of its workers, by their URLs."""
    listed = httpx.get(f"{url}/workers", headers=bearer(key), timeout=10).json()["workers"]
    return {worker["url"]: worker for worker in listed}


def add_worker(url: str, worker: str) -> None:
    response = httpx.post(f"{url}/workers", json={"url": worker}, timeout=10)
    assert response.status_code in {200, 202}, response.text


def remove_worker(url: str, worker: str, seconds: float = 20.0) -> None:
    """Remove it by its id, or where a gateway gives none, by its URL; and wait until it is gone."""
    name = workers_of(url)[worker].get("id") or quote(worker, safe="")
    response = httpx.delete(f"{url}/workers/{name}", timeout=10)
    assert response.status_code in {200, 202}, response.text
    wait_until(lambda: worker not in workers_of(url), seconds)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about within {seconds} s"
        time.sleep(0.1)


class Load:
    """Callers that ask one question over and over, until stopped. failures: what was not a right answer."""

    def __init__(self, url: str, callers: int = 4) -> None:
        self.url = url
        self.answered = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(callers)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        with httpx.Client(timeout=40) as client:
            while not self._stop.is_set():
                try:
                    response = client.post(f"{self.url}/v1/classify", json={"model": "tiny", "input": "the coffee"})
                    problem = "" if response.status_code == 200 else f"{response.status_code} {response.text[:200]}"
                    if not problem and len(json.loads(response.text)["data"]) != 1:
                        problem = response.text[:200]
                except httpx.HTTPError as error:
                    problem = repr(error)
                with self._lock:
                    self.answered += not problem
                    if problem:
                        self.failures.append(problem)
                time.sleep(0.01)

"""Behind real gateways: requests and errors pass through whole, and no request is lost when workers die or restart."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.gateways import GATEWAYS, Load, gateway
from tests.e2e.process import Server, free_port, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"})
    return folder


@pytest.fixture(scope="module", params=GATEWAYS)
def routed(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a gateway in front of two workers that live as long as the module's tests of it."""
    with ExitStack() as stack:
        workers = [stack.enter_context(serving(tiny, "--served-model-name", "tiny")) for _ in range(2)]
        log = tmp_path_factory.mktemp("gateway") / "log"
        yield stack.enter_context(gateway(request.param, [worker.url for worker in workers], log))


def ask(url: str, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/classify", json={"model": "tiny", **body}, headers=headers or {}, timeout=30)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("the coffee was great", 1),
        (["great", "so", "the update broke"], 3),
        ([5, 6, 7], 1),
        ([[5, 6], [7]], 2),
        ([{"text": "the coffee", "text_pair": "was great"}, {"text": "great"}], 2),
    ],
    ids=["text", "texts", "ids", "lists of ids", "objects"],
)
def test_inputs_pass_through(routed: str, value: object, count: int) -> None:
    response = ask(routed, input=value)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(count))
    assert all(entry["num_classes"] == 3 for entry in data)


def test_errors_pass_through(routed: str) -> None:
    response = ask(routed, input="")
    assert response.status_code == 400
    assert response.json()["error"] == "Input cannot be empty"
    assert ask(routed, input=[10**9]).json()["type"] == "invalid_request_error"


def test_request_ids_pass_through(routed: str) -> None:
    response = ask(routed, {"x-request-id": "mine-1"}, input="great")
    assert response.json()["id"] == "classify-mine-1"
    assert ask(routed, input="great", rid="mine-2").json()["id"].startswith("classify-")


def _worker(stack: ExitStack, tiny: Path, port: int = 0) -> Server:
    return stack.enter_context(serving(tiny, "--served-model-name", "tiny", port=port))


@pytest.mark.parametrize("name", GATEWAYS)
def test_no_request_is_lost_when_a_worker_is_killed(name: str, tiny: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        doomed, survivor = _worker(stack, tiny), _worker(stack, tiny)
        url = stack.enter_context(gateway(name, [doomed.url, survivor.url], tmp_path / "log"))
        with Load(url) as load:
            time.sleep(2)
            before = load.answered
            os.kill(doomed.process.pid, signal.SIGKILL)
            time.sleep(4)
        assert before > 20
        assert load.answered > before + 20
        assert load.failures == []


@pytest.mark.parametrize("name", GATEWAYS)
def test_no_request_is_lost_in_a_rolling_restart(name: str, tiny: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        workers = [_worker(stack, tiny, port) for port in ports]
        url = stack.enter_context(gateway(name, [worker.url for worker in workers], tmp_path / "log"))
        with Load(url) as load:
            time.sleep(1)
            for worker, port in zip(workers, ports, strict=True):
                worker.process.send_signal(signal.SIGTERM)
                assert worker.wait() == 0
                _worker(stack, tiny, port)
                time.sleep(3)  # health checks find the new one before the next goes
        assert load.answered > 100
        assert load.failures == []

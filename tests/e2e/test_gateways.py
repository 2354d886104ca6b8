"""Behind real gateways: requests, keys and errors pass through, and no request is lost when workers come and go."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.gateways import GATEWAYS, Load, add_worker, bearer, gateway, remove_worker, wait_until, workers_of
from tests.e2e.process import Server, free_port, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

# vllm-router loses requests when a worker dies: docs/scale.md has the count.
LOSSLESS = ("sglang-router", "smg")
KEY, ALICE, BOB = "the-gateways-key", "alices-key", "bobs-key"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"})
    return folder


def _worker(stack: ExitStack, tiny: Path, *options: str, port: int = 0) -> Server:
    return stack.enter_context(serving(tiny, "--served-model-name", "tiny", *options, port=port))


@pytest.fixture(scope="module")
def workers(tiny: Path) -> Iterator[list[Server]]:
    """Three that nobody stops."""
    with ExitStack() as stack:
        yield [_worker(stack, tiny) for _ in range(3)]


@pytest.fixture(scope="module")
def locked(tiny: Path) -> Iterator[list[str]]:
    """Two that know the gateway's key and Alice's, but not Bob's."""
    with ExitStack() as stack:
        yield [_worker(stack, tiny, "--api-key", KEY, "--api-key", ALICE).url for _ in range(2)]


@pytest.fixture(scope="module", params=GATEWAYS)
def routed(
    request: pytest.FixtureRequest, workers: list[Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The name and the URL of a gateway in front of two workers."""
    log = tmp_path_factory.mktemp("gateway") / "log"
    with gateway(request.param, [worker.url for worker in workers[:2]], log) as url:
        yield request.param, url


def ask(url: str, headers: dict[str, str] | None = None, path: str = "/v1/classify", **body: Any) -> httpx.Response:
    return httpx.post(url + path, json={"model": "tiny", "input": "great", **body}, headers=headers or {}, timeout=30)


# --- what passes through ---


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
def test_inputs_pass_through(routed: tuple[str, str], workers: list[Server], value: object, count: int) -> None:
    name, url = routed
    direct = ask(workers[0].url, input=value).json()
    for path in ("/v1/classify", "/classify") if name == "vllm-router" else ("/v1/classify",):
        response = ask(url, input=value, path=path)
        assert response.status_code == 200, response.text
        body = response.json()
        assert [row["index"] for row in body["data"]] == list(range(count))
        assert body["usage"] == direct["usage"]
        for row, expected in zip(body["data"], direct["data"], strict=True):
            assert row["label"] == expected["label"]
            assert row["probs"] == pytest.approx(expected["probs"], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        ({"input": ""}, 400, "invalid_request_error"),
        ({"input": [10**9]}, 400, "invalid_request_error"),
        ({"input": "the coffee " * 200}, 400, "context_length_exceeded"),
        ({"input": {"no": "text"}}, 400, "invalid_request_error"),
    ],
    ids=["empty", "unknown id", "too long", "an object that is no text"],
)
def test_errors_pass_through(
    routed: tuple[str, str], workers: list[Server], body: dict[str, Any], status: int, error_type: str
) -> None:
    response = ask(routed[1], **body)
    assert (response.status_code, response.json()["type"]) == (status, error_type)
    assert response.json() == ask(workers[0].url, **body).json()


def test_request_ids_pass_through(routed: tuple[str, str]) -> None:
    name, url = routed
    if name == "vllm-router":  # it forwards no headers, and the body whole
        assert ask(url, rid="mine-2").json()["id"] == "classify-mine-2"
    else:
        response = ask(url, {"x-request-id": "mine-1"})
        assert response.json()["id"] == "classify-mine-1"
        assert response.headers["x-request-id"] == "mine-1"


def test_other_fields_pass_through_vllm_router_alone(routed: tuple[str, str]) -> None:
    name, url = routed
    raw = abs(sum(ask(url, use_activation=False).json()["data"][0]["probs"]) - 1) > 1e-3
    assert raw == (name == "vllm-router")


# --- keys ---


def refused(response: httpx.Response) -> bool:
    """By the worker: its own words, its own header."""
    words = {"error": "Unauthorized", "type": "unauthorized", "code": 401}
    body = response.json()
    return (
        response.status_code == 401
        and response.headers["www-authenticate"] == "Bearer"
        and {name: body[name] for name in words} == words
    )


def all_healthy(url: str, count: int, key: str = "") -> bool:
    listed = workers_of(url, key)
    return len(listed) == count and all(worker["is_healthy"] for worker in listed.values())


def test_sglang_router_passes_its_callers_keys_on(locked: list[str], tmp_path: Path) -> None:
    """Few refusals, since its circuit breaker counts them: 20 in a row over two workers lock everybody out."""
    with gateway("sglang-router", locked, tmp_path / "log", key=ALICE) as url:
        assert ask(url, bearer(ALICE)).status_code == 200
        assert all(refused(ask(url)) for _ in range(3))
        assert refused(ask(url, bearer(BOB)))
        assert ask(url, bearer(KEY)).status_code == 200
        time.sleep(2.5)  # two health checks
        assert all_healthy(url, len(locked))
        assert ask(url, bearer(ALICE)).status_code == 200


def test_smg_passes_its_tenants_keys_on(locked: list[str], tmp_path: Path) -> None:
    """smg finds out what a worker serves with its own key, and knows its callers by theirs."""
    tenants = ("--tenant-api-key", f"alice:{ALICE}", "--tenant-api-key", f"bob:{BOB}")
    with gateway("smg", locked, tmp_path / "log", "--api-key", KEY, *tenants, key=KEY) as url:
        assert ask(url, bearer(ALICE)).status_code == 200
        assert all(refused(ask(url, bearer(BOB))) for _ in range(30))
        time.sleep(2.5)
        assert all_healthy(url, len(locked), KEY)
        assert ask(url, bearer(ALICE)).status_code == 200


@pytest.mark.parametrize("name", GATEWAYS)
def test_the_gateways_own_key(name: str, locked: list[str], tmp_path: Path) -> None:
    """sglang-router and smg ask their callers for it too; vllm-router shows it to the workers and lets everybody in."""
    with gateway(name, locked, tmp_path / "log", "--api-key", KEY, key=KEY) as url:
        assert ask(url, bearer(KEY)).status_code == 200
        keyless = [ask(url, headers).status_code for headers in ({}, bearer("wrong"), {"X-API-Key": KEY})]
        assert keyless == ([200] * 3 if name == "vllm-router" else [401] * 3)


# --- workers that come and go ---


def served(worker: Server) -> float:
    """Requests answered so far."""
    lines = re.findall(r'^assay_requests_total\{dialect="classify".*\} (.*)$', _metrics(worker), re.MULTILINE)
    return sum(map(float, lines))


def _metrics(worker: Server) -> str:
    return httpx.get(f"{worker.url}/metrics", timeout=10).text


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_worker_added_and_another_removed_under_load(name: str, workers: list[Server], tmp_path: Path) -> None:
    first, second, third = workers
    with gateway(name, [first.url, second.url], tmp_path / "log") as url:
        wait_until(lambda: set(workers_of(url)) == {first.url, second.url})
        with Load(url) as load:
            before = served(third)
            add_worker(url, third.url)
            wait_until(lambda: served(third) > before + 20)
            remove_worker(url, first.url)
            time.sleep(0.5)  # what was on its way
            left, after = served(first), load.answered
            wait_until(lambda: load.answered > after + 50)
            assert served(first) == left
        assert set(workers_of(url)) == {second.url, third.url}
        assert load.failures == []


@pytest.mark.parametrize("name", LOSSLESS)
def test_no_request_is_lost_when_a_worker_is_killed(
    name: str, workers: list[Server], tiny: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        doomed, survivor = _worker(stack, tiny), workers[0]
        url = stack.enter_context(gateway(name, [doomed.url, survivor.url], tmp_path / "log"))
        wait_until(lambda: len(workers_of(url)) == 2)
        with Load(url) as load:
            wait_until(lambda: load.answered > 100 and served(doomed) > 20)
            os.kill(doomed.process.pid, signal.SIGKILL)
            before = load.answered
            time.sleep(4)
        assert load.answered > before + 20
        assert load.failures == []


@pytest.mark.parametrize("name", LOSSLESS)
def test_no_request_is_lost_in_a_rolling_restart(name: str, tiny: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        workers = [_worker(stack, tiny, port=port) for port in ports]
        url = stack.enter_context(gateway(name, [worker.url for worker in workers], tmp_path / "log"))
        with Load(url) as load:
            time.sleep(1)
            for worker, port in zip(workers, ports, strict=True):
                worker.process.send_signal(signal.SIGTERM)
                assert worker.wait() == 0
                _worker(stack, tiny, port=port)
                time.sleep(3)  # health checks find the new one before the next goes
        assert load.answered > 100
        assert load.failures == []

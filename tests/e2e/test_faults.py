"""Faults of the real process: each has its outcome, only those at fault hear of it, and nothing is left hanging."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.reliability.load import LOST, NO_CONNECTION, Outcome, Request, closed_loop
from tests.e2e.faulty import BAD_ID, ROOM, SECRET
from tests.e2e.process import REPOSITORY, Server, free_port, serving
from tests.tiny import rewrite_weights, save_bert

pytestmark = pytest.mark.slow

GOOD = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, num_hidden_layers=1)
    return folder


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    return tmp_path / "switch"


@contextlib.contextmanager
def ending_well(server: Server) -> Iterator[Server]:
    """At the end it still answers, and SIGTERM ends it with 0."""
    yield server
    assert httpx.get(f"{server.url}/health", timeout=10).status_code in {200, 503}
    server.process.terminate()
    assert server.wait(20) == 0, server.log()
    assert "Traceback" not in server.log()


def ask(server: Server, value: Any = GOOD) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/classify", json={"input": value}, timeout=60)


def probs(response: httpx.Response) -> Any:
    return [item["probs"] for item in response.json()["data"]]


def wait_in_flight(server: Server, count: int) -> None:
    server.wait_status("/health", 200)
    for _ in range(1000):
        lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
        if (
            sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("assay_requests_in_flight{"))
            == count
        ):
            return
    raise AssertionError(f"there were never {count} requests in flight")


def answered(server: Server) -> dict[str, int]:
    """The access log: the status that was written for each request's id."""
    entries = (json.loads(line) for line in server.log().splitlines() if line.startswith("{"))
    return {entry["request_id"]: entry["status"] for entry in entries}


# --- signals ---


def test_sigterm_under_load_loses_nothing_that_was_accepted(tiny: Path) -> None:
    """Whatever the server's log says was answered has reached its caller, and what it never saw was not answered."""
    requests = [
        Request(
            json.dumps({"input": [[5 + (i + row) % 50] * 30 for row in range(20)]}).encode(),
            headers=(("content-type", "application/json"), ("x-request-id", f"load-{i}")),
        )
        for i in range(20_000)
    ]

    async def load(server: Server) -> list[Outcome]:
        running = asyncio.create_task(closed_loop(server.url, requests, callers=16, seconds=60))
        await asyncio.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        return await running

    with serving(tiny) as server:
        outcomes = asyncio.run(load(server))
        assert server.wait(30) == 0, server.log()
        said = answered(server)
    got = {f"load-{i}": outcome.end for i, outcome in enumerate(outcomes)}
    assert set(got.values()) <= {200, 503, LOST, NO_CONNECTION}
    assert list(got.values()).count(200) > 100
    lost = {name for name, end in got.items() if end in {LOST, NO_CONNECTION}}
    assert not lost & set(said), "a request that was read got no answer"
    assert {name: end for name, end in got.items() if name not in lost} == {
        name: status for name, status in said.items() if name.startswith("load-")
    }


@pytest.mark.parametrize("signals", [1, 2])
def test_a_device_that_hangs_does_not_hold_up_the_end(tiny: Path, switch: Path, signals: int) -> None:
    """The drain has its timeout, and a second signal does not wait for it. Either way it ends with 0."""
    options = ("--drain-timeout", "1" if signals == 1 else "500")
    module = ("tests.e2e.faulty", "device", str(switch))
    with serving(tiny, *options, module=module) as server, ThreadPoolExecutor(1) as pool:
        switch.write_text("hold")
        call = pool.submit(ask, server)
        wait_in_flight(server, 1)
        server.process.send_signal(signal.SIGTERM)
        if signals == 2:
            server.wait_status("/health", 503)
            assert server.process.poll() is None, "it drains"
            server.process.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert isinstance(call.exception(10), httpx.TransportError) or call.result().status_code >= 500


# --- the device ---


def test_a_device_that_dies_tells_everybody(tiny: Path, switch: Path) -> None:
    """500 for all who wait, 503 for who comes later, and the process goes on to say so."""
    with (
        serving(tiny, module=("tests.e2e.faulty", "device", str(switch))) as server,
        ending_well(server),
        ThreadPoolExecutor(20) as pool,
    ):
        assert ask(server).status_code == 200
        switch.write_text("hold")
        calls: list[Future[httpx.Response]] = [pool.submit(ask, server, [GOOD] * 50) for _ in range(20)]
        wait_in_flight(server, 20)
        switch.write_text("fail")
        assert [call.result(60).status_code for call in calls] == [500] * 20
        assert server.wait_status("/health", 503).json() == {"status": "dead"}
        switch.unlink()
        assert [ask(server).status_code for _ in range(3)] == [503] * 3
        for _ in range(3):
            assert httpx.get(f"{server.url}/health").json() == {"status": "dead"}
        assert 'state="dead"} 1.0' in httpx.get(f"{server.url}/metrics").text
        assert "The runner thread failed: RuntimeError" in server.log()


def test_a_bad_input_fails_its_own_request_alone(tiny: Path, switch: Path) -> None:
    values = [[BAD_ID if i % 10 == 3 else 6 + i % 3] * 5 for i in range(60)]
    with (
        serving(tiny, module=("tests.e2e.faulty", "bad-input", str(switch))) as server,
        ending_well(server),
        ThreadPoolExecutor(12) as pool,
    ):
        clean = {i: probs(ask(server, [6 + i] * 5)) for i in range(3)}
        answers = list(pool.map(lambda value: ask(server, value), values))
        for i, answer in enumerate(answers):
            if i % 10 == 3:
                assert answer.status_code == 500
                assert "failed on this input" in answer.text
                assert SECRET not in answer.text
            else:
                assert probs(answer)[0] == pytest.approx(clean[i % 3][0], abs=1e-6)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert SECRET not in server.log()
        server.stderr.truncate(0)  # its tracebacks are of the fault, as they should be


def test_memory_that_runs_out(tiny: Path, switch: Path) -> None:
    """A batch that is too large is computed in parts; an input that is too large alone is a 500."""
    with (
        serving(tiny, module=("tests.e2e.faulty", "little-memory", str(switch))) as server,
        ending_well(server),
    ):
        alone = probs(ask(server, GOOD))[0]
        together = ask(server, [GOOD] * ROOM)
        assert together.status_code == 200
        assert all(row == pytest.approx(alone, abs=1e-6) for row in probs(together))
        large = ask(server, [5] * (ROOM + 1))
        assert (large.status_code, "more memory than there is" in large.text) == (500, True)
        assert ask(server).status_code == 200
        server.stderr.truncate(0)


def test_a_score_that_is_not_a_number(tiny: Path, tmp_path: Path) -> None:
    """Finite weights that overflow on one token: that input is a 500, its neighbours in the batch are answered."""
    folder = tmp_path / "overflowing"
    shutil.copytree(tiny, folder)

    def overflow(tensors: Any) -> None:
        tensors["bert.embeddings.word_embeddings.weight"][BAD_ID, ::2] = 3e38
        tensors["bert.embeddings.word_embeddings.weight"][BAD_ID, 1::2] = -3e38

    rewrite_weights(folder, overflow)
    with serving(folder) as server, ending_well(server), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: ask(server, [BAD_ID if i == 3 else 6] * 5), range(8)))
        assert [answer.status_code for answer in answers] == [500 if i == 3 else 200 for i in range(8)]
        assert "not finite" in answers[3].text
        assert httpx.get(f"{server.url}/health").status_code == 200


# --- the tokenizer ---


def test_a_tokenizer_that_panics_or_hangs(tiny: Path, switch: Path) -> None:
    options = ("--tokenizer-timeout", "1", "--tokenizer-threads", "1")
    with (
        serving(tiny, *options, module=("tests.e2e.faulty", "tokenizer", str(switch))) as server,
        ending_well(server),
        ThreadPoolExecutor(4) as pool,
    ):
        panics = ask(server, "panic")
        assert (panics.status_code, SECRET in panics.text + server.log()) == (500, False)
        hangs = pool.submit(ask, server, "hang")
        behind = [pool.submit(ask, server, "the coffee") for _ in range(3)]
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert hangs.result(60).status_code == 500
        assert "took more than 1 s" in hangs.result().text
        assert [call.result(60).status_code for call in behind] == [200] * 3
        assert "assay_tokenizer_threads_lost_total" in httpx.get(f"{server.url}/metrics").text
        assert httpx.get(f"{server.url}/health").status_code == 200


# --- files ---


@pytest.mark.parametrize("how", ["vanish", "truncated"])
def test_weights_that_go_while_they_are_loaded(tiny: Path, tmp_path: Path, how: str) -> None:
    """Loading waits for config.json, which is a named pipe; meanwhile the weights go."""
    for path in tiny.iterdir():
        if path.name != "config.json":
            shutil.copy(path, tmp_path)
    os.mkfifo(tmp_path / "config.json")
    weights = tmp_path / "model.safetensors"
    with serving(tmp_path, "--access-log", "none", port=free_port(), wait=False) as server:
        server.wait_status("/health", 503)
        if how == "vanish":
            weights.unlink()
        else:
            os.truncate(weights, weights.stat().st_size // 2)
        (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
        assert server.wait(30) == 1
        (line,) = server.log().splitlines()
    assert line.startswith("assay: ")
    assert "model.safetensors" in line


@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_weights_that_go_while_they_are_served(tiny: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    with serving(folder) as server, ending_well(server):
        before = probs(ask(server))
        if how == "cut":
            os.truncate(weights, 0)
        else:
            with weights.open("r+b") as file:
                file.write(b"\xff" * weights.stat().st_size)
        assert probs(ask(server)) == before


def test_two_servers_on_one_folder(tiny: Path) -> None:
    with serving(tiny) as one, serving(tiny) as two, ending_well(one), ending_well(two):
        assert probs(ask(one)) == probs(ask(two))


def test_two_servers_on_one_hub_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both start at the same moment, offline, from a cache as huggingface_hub lays it out."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--people--tiny"
    shutil.copytree(tiny, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ports = free_port(), free_port()
    with (
        serving("people/tiny", port=ports[0], wait=False) as one,
        serving("people/tiny", port=ports[1], wait=False) as two,
        ending_well(one),
        ending_well(two),
    ):
        for server in (one, two):
            server.wait_status("/health", 200)
        assert probs(ask(one)) == probs(ask(two))


# --- a disk that is full ---


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_full_disk_does_not_end_the_server(tiny: Path, level: str) -> None:
    """Its ready line and its log are lost; requests are answered; what is left in a buffer does not change the code."""
    port = free_port()
    command = [sys.executable, "-m", "assay", "serve", str(tiny), "--port", str(port), "--log-level", level]
    with (
        open("/dev/full", "w+") as full,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=full, stderr=full, text=True) as process,
    ):
        server = Server(process, full, port)
        try:
            server.wait_status("/health", 200)
            assert [ask(server).status_code for _ in range(20)] == [200] * 20
            process.terminate()
            assert server.wait(20) == 0
        finally:
            process.kill()


def test_a_full_disk_is_one_line_on_the_command_line(tiny: Path) -> None:
    command = [sys.executable, "-m", "assay", "classify", "--text", "the coffee", "-m", str(tiny)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["assay: [Errno 28] No space left on device"]


# --- clocks ---


LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.skipif(LIBFAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)")
def test_a_wall_clock_that_jumps(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By years, forwards and backwards, under requests with deadlines: nobody is late, and nobody waits."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(LIBFAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    with serving(tiny) as server:
        monkeypatch.delenv("LD_PRELOAD")
        with ending_well(server), httpx.Client(headers={"x-request-timeout-ms": "30000"}, timeout=60) as client:
            years = []
            for jump in ("+0", "+3650d", "-3650d", "+1d", "-1d", "+0"):
                clock.write_text(jump)
                answer = client.post(f"{server.url}/v1/classify", json={"input": GOOD})
                assert answer.status_code == 200
                years.append(answer.json()["created"] // (365 * 86_400))
            assert max(years) - min(years) >= 19, "the clock did jump"

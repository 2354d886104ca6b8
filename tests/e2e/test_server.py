"""The real process: it loads, answers, drains on signals, and says in one line why it cannot start."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay import __version__
from assay.config import BUNDLED_MODEL
from tests.e2e.process import REPOSITORY, Server, free_port, run_assay, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

TEXT = "Loved the new café—coffee was great."
EMOTIONS = {"admiration", "approval", "joy", "love", "excitement", "gratitude"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"})
    return folder


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a few hundred inputs take a second or two, so that a signal comes while they are computed."""
    folder = tmp_path_factory.mktemp("heavy")
    save_bert(folder, hidden_size=256, num_hidden_layers=4, intermediate_size=1024)
    return folder


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Server]:
    with serving(tiny, "--served-model-name", "tiny") as running:
        yield running


def classify(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/classify", json=body, timeout=60)


# --- answers ---


def test_the_ready_line_says_what_is_served(server: Server) -> None:
    assert server.ready.startswith(f"assay {__version__} is ready at {server.url}: tiny, BertForSequenceClassification")
    assert server.log() == ""


def test_the_documents_request(server: Server) -> None:
    response = classify(server.url, model="tiny", input=TEXT)
    assert response.status_code == 200
    body = response.json()
    assert list(body) == ["id", "object", "created", "model", "data", "usage"]
    assert body["id"].startswith("classify-")
    assert (body["object"], body["model"]) == ("list", "tiny")
    assert abs(body["created"] - time.time()) < 60
    (row,) = body["data"]
    assert list(row) == ["index", "label", "probs", "num_classes"]
    assert (row["index"], row["num_classes"], len(row["probs"])) == (0, 3, 3)
    assert row["label"] == ["bad", "fair", "good"][row["probs"].index(max(row["probs"]))]
    assert sum(row["probs"]) == pytest.approx(1, abs=1e-5)
    usage = {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0, "prompt_tokens_details": None}
    assert body["usage"] == usage


def test_64_callers_at_once_get_what_each_gets_alone(server: Server) -> None:
    words = ["the", "coffee", "was", "great", "update", "broke", "everything", "loved", "new", "café"]
    texts = [" ".join(words[(i * 7 + j) % len(words)] for j in range(1 + (i * 13) % 90)) for i in range(64)]
    alone = [classify(server.url, input=text).json()["data"][0]["probs"] for text in texts]

    async def all_at_once() -> list[Any]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            calls = [client.post("/v1/classify", json={"input": text}) for text in texts * 3]
            return [response.json()["data"][0]["probs"] for response in await asyncio.gather(*calls)]

    together = asyncio.run(all_at_once())
    assert len({tuple(probs) for probs in alone}) == 64
    for found, expected in zip(together, alone * 3, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_bytes_that_are_no_http(server: Server) -> None:
    for junk in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /v1/classify HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                answer = connection.recv(1000)
                assert not answer or answer.startswith(b"HTTP/1.1 400"), answer
    assert classify(server.url, input=TEXT).status_code == 200
    assert server.process.poll() is None


def test_clients_that_hang_up_leave_nothing_behind(server: Server) -> None:
    body = json.dumps({"input": long_texts(500)}).encode()
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    empty = [r"^assay_queue_sequences\{.*\} 0\.0$", r"^assay_queue_tokens\{.*\} 0\.0$"]
    for _ in range(100):
        metrics = httpx.get(f"{server.url}/metrics").text
        if all(re.search(pattern, metrics, re.MULTILINE) for pattern in empty):
            break
        time.sleep(0.05)
    else:
        raise AssertionError(metrics)
    assert classify(server.url, input=TEXT).status_code == 200


# --- the script that checks a server ---


def check(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(REPOSITORY / "test_classify_api.py"), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_checking_script_passes(server: Server) -> None:
    result = check(server.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "✗" not in result.stdout
    assert result.stdout.count("✓") > 100
    assert result.stdout.splitlines()[-1].endswith(" 0 failed.")


def test_the_checking_script_says_when_no_server_answers() -> None:
    result = check(f"http://127.0.0.1:{free_port()}")
    assert result.returncode == 2
    assert "make serve" in result.stdout
    assert "Traceback" not in result.stderr


GOOD_ROW = {"index": 0, "label": "a", "probs": [0.75, 0.25], "num_classes": 2}
GOOD_USAGE = {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": None}
GOOD_ANSWER = {"id": "classify-1", "object": "list", "created": 0, "model": "fake", "data": [], "usage": GOOD_USAGE}
# What a wrong server says to everything, and the line in which the script must complain of it.
WRONG = {
    "an empty object": ({}, "✗ data has 1 result"),
    "no JSON": ("<html>", "✗ data has 1 result"),
    "wrong id": ({"id": "1"}, "✗ id starts with classify-"),
    "old": ({"created": 1}, "✗ created is this minute's"),
    "another model": ({"model": "other"}, "✗ model is fake"),
    "more classes": ({"data": [GOOD_ROW | {"num_classes": 3}]}, "✗ data[0].num_classes is the number of probs"),
    "beyond one": ({"data": [GOOD_ROW | {"probs": [1.5, -0.5]}]}, "✗ data[0].probs lie between 0 and 1"),
    "no label": ({"data": [GOOD_ROW | {"label": None}]}, "✗ data[0].label is a name"),
    "index from one": ({"data": [GOOD_ROW | {"index": 1}]}, "✗ index counts from 0"),
    "total differs": ({"usage": GOOD_USAGE | {"total_tokens": 4}}, "✗ usage.total_tokens is the same"),
    "tokens completed": ({"usage": GOOD_USAGE | {"completion_tokens": 1}}, "✗ usage.completion_tokens is 0"),
    "errors are answers": ({}, "✗ status is 400"),
}


@pytest.mark.parametrize(("wrong", "complaint"), WRONG.values(), ids=WRONG)
def test_the_checking_script_fails_a_wrong_server(wrong: Any, complaint: str) -> None:
    class Wrong(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"object": "list", "data": [{"id": "fake", "max_model_len": 16}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = GOOD_ANSWER | {"created": int(time.time()), "data": [GOOD_ROW]}
            self._reply(wrong if wrong == {} or isinstance(wrong, str) else answer | wrong)

        def _reply(self, value: Any) -> None:
            body = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Wrong) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        try:
            result = check(f"http://127.0.0.1:{fake.server_port}")
        finally:
            fake.shutdown()
            thread.join()
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout
    assert result.stderr == ""


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_under_load_drains(heavy: Path, number: signal.Signals) -> None:
    """What was accepted is answered, what comes later gets 503 or no connection, and the process ends with 0."""
    with serving(heavy, "--drain-timeout", "60") as server, ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(classify, server.url, input=long_texts(40)) for _ in range(8)]
        wait_until_accepted(server, requests=8, inputs=40)
        server.process.send_signal(number)
        late: list[int] = []
        while server.process.poll() is None:
            try:
                late.append(httpx.post(f"{server.url}/v1/classify", json={"input": "great"}, timeout=30).status_code)
            except httpx.TransportError:
                late.append(0)
            time.sleep(0.02)
        answers = [call.result() for call in accepted]
        assert server.wait() == 0, server.log()
        assert [answer.status_code for answer in answers] == [200] * 8
        assert all(len(answer.json()["data"]) == 40 for answer in answers)
        first_refusal = next(i for i, status in enumerate(late) if status != 200)
        assert set(late[first_refusal:]) <= {503, 0}
        assert 503 in late, "the drain was over before anybody could be refused"
        assert "Traceback" not in server.log()


def long_texts(count: int) -> list[str]:
    """Of 118 words, no two the same: of equal ones in a request, one is computed."""
    words = ("coffee", "was", "great")
    return [" ".join([words[i // 3**place % 3] for place in range(7)] + [*words] * 37) for i in range(count)]


def wait_until_accepted(server: Server, requests: int, inputs: int) -> None:
    """Until every request is in. Sequences that wait or are done are counted; up to two batches of 16 are neither."""
    assert inputs > 32
    for _ in range(1000):
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        names = ("assay_queue_sequences{", "assay_sequences_total{")
        if sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names)) > (requests - 1) * inputs:
            return
        time.sleep(0.01)
    raise AssertionError("the requests were not accepted")


@pytest.mark.alone
def test_a_second_signal_ends_it_at_once(heavy: Path) -> None:
    with serving(heavy) as server, ThreadPoolExecutor(1) as pool:
        call = pool.submit(classify, server.url, input=long_texts(2000))
        wait_until_accepted(server, requests=1, inputs=2000)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None, "it was too quick to be interrupted"
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.wait(10)
        assert time.monotonic() - started < 5
        with contextlib.suppress(httpx.TransportError):  # cut off, or told
            assert call.result().status_code >= 500


def test_an_idle_server_ends_at_once(tiny: Path) -> None:
    """Also with an open connection that nobody uses, and one on which a request never ends."""
    with serving(tiny) as server, httpx.Client() as idle:
        assert idle.get(f"{server.url}/health").status_code == 200
        with socket.create_connection(("127.0.0.1", server.port), 5) as half:
            half.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            half.sendall(b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            server.process.terminate()
            assert server.wait(15) == 0


# --- loading ---


@pytest.fixture
def stalled(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint whose loading waits until somebody writes its config.json: it is a named pipe."""
    folder = tmp_path / "stalled"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny / name)
    os.mkfifo(folder / "config.json")
    return folder


def test_503_while_loading_then_200(tiny: Path, stalled: Path) -> None:
    with serving(stalled, port=free_port(), wait=False) as server:
        assert server.wait_status("/health", 503).json() == {"status": "loading"}
        refused = classify(server.url, input="great")
        assert (refused.status_code, refused.json()["code"]) == (503, 503)
        (stalled / "config.json").write_text((tiny / "config.json").read_text())
        server.wait_ready()
        assert server.wait_status("/health", 200).json() == {"status": "ok"}
        assert classify(server.url, input="great").status_code == 200


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_while_loading(stalled: Path, times: int) -> None:
    """Nobody waits for a download or a disk that may take minutes."""
    with serving(stalled, port=free_port(), wait=False) as server:
        server.wait_status("/health", 503)
        for _ in range(times):
            server.process.terminate()
            time.sleep(0.3)
        try:
            code = server.wait(8)
        except subprocess.TimeoutExpired:
            pytest.fail("it goes on loading after SIGTERM")
        assert server.process.stdout is not None
        assert server.process.stdout.read() == "", "it is not ready, and does not say so"
        assert "Traceback" not in server.log()
        assert code == 0 or times == 2


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_a_port_in_use(server: Server, tiny: Path) -> None:
    line = one_line(run_assay("serve", str(tiny), "--port", str(server.port), timeout=60))
    assert line == f"assay: Cannot listen on 127.0.0.1:{server.port}: Address already in use. Choose another --port.\n"


def test_a_broken_checkpoint(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((tiny / "tokenizer.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    assert "model.safetensors" in one_line(run_assay("serve", str(tmp_path), "--port", "0", timeout=60))


# --- the bundled model ---


@pytest.mark.skipif(not (BUNDLED_MODEL / "model.safetensors").is_file(), reason="the bundled model is not trained yet")
def test_the_bundled_model_answers_the_documents_curl() -> None:
    with serving(None) as server:
        name = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        body = classify(server.url, model=name, input=TEXT).json()
        (row,) = body["data"]
        assert row["label"] in EMOTIONS
        assert row["num_classes"] == len(row["probs"]) == 28
        assert all(0 <= p <= 1 for p in row["probs"])
        assert max(row["probs"]) > 0.3
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 5
        result = check(server.url)
        assert result.returncode == 0, result.stdout

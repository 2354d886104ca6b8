"""The real process among slow clients: it answers the honest, cuts off the others, and ends when it is told to.

Its sockets too: TLS, Unix, and a stdout that cannot be written.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.e2e.crowd import KINDS, crowd
from tests.e2e.process import REPOSITORY, free_port, run_assay, serving
from tests.tiny import save_bert

pytestmark = [pytest.mark.slow, pytest.mark.alone]

TEXTS = ["the coffee was great", "update broke everything", "loved the new café", "so so"]
SHORT = ("--header-timeout", "2", "--body-timeout", "2", "--write-timeout", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"})
    return folder


async def ask(client: httpx.AsyncClient, text: str) -> list[float]:
    response = await client.post("/v1/classify", json={"input": text})
    assert response.status_code == 200, response.text
    probs: list[float] = response.json()["data"][0]["probs"]
    return probs


async def test_an_honest_client_among_200_slow_ones(tiny: Path) -> None:
    with serving(tiny, *SHORT) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            alone = [await ask(client, text) for text in TEXTS]
            async with crowd(server.port, 200) as slow:
                for _ in range(25):
                    for text, expected in zip(TEXTS, alone, strict=True):
                        assert await ask(client, text) == pytest.approx(expected, abs=1e-5)
                await asyncio.wait_for(asyncio.gather(*slow.tasks), 60)
                endings = dict(slow.endings)
            assert (await client.get("/health")).status_code == 200
        assert sum(endings.values()) == 200
        assert {ending.partition(":")[0] for ending in endings} == set(KINDS)
        said = {ending.partition(": ")[2] for ending in endings}
        assert said == {"closed", "HTTP/1.1 408 Request Timeout", "HTTP/1.1 405 Method Not Allowed"}, endings
        assert "Traceback" not in server.log()
        assert "WARNING" not in server.log()


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM] * 2], ids=str)
async def test_the_process_ends_among_slow_clients(tiny: Path, numbers: list[signal.Signals]) -> None:
    """Though their heads and bodies may take ten minutes; and it says nothing of it."""
    patient = ("--header-timeout", "600", "--body-timeout", "600", "--write-timeout", "600")
    with serving(tiny, *patient, "--access-log", "none") as server:
        async with crowd(server.port, 60) as slow:
            with unread(server.port) as reader:
                await asyncio.sleep(1)
                assert slow.open >= 50  # but for those whose bodies nobody wanted
                for number in numbers:
                    server.process.send_signal(number)
                    await asyncio.sleep(0.1)
                code = await asyncio.to_thread(server.wait, 25)
                assert reader.fileno() > 0
        assert code == 0
        assert server.log() == ""


@contextlib.contextmanager
def unread(port: int) -> Iterator[socket.socket]:
    """A client that asks for megabytes and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        yield client


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For localhost, made by the openssl command."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no openssl command to make a certificate with")
    return files


def test_https(tiny: Path, certificate: tuple[Path, Path]) -> None:
    options = ("--ssl-certfile", str(certificate[0]), "--ssl-keyfile", str(certificate[1]), *SHORT)
    with serving(tiny, *options, port=free_port(), wait=False) as server:
        assert server.process.stdout is not None
        url = f"https://127.0.0.1:{server.port}"
        assert f" is ready at {url}: " in server.process.stdout.readline()
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        with httpx.Client(base_url=url, verify=trust, timeout=30) as client:
            assert client.post("/v1/classify", json={"input": "great"}).status_code == 200
            large = client.post("/v1/classify", content=b" " * 9_000_000, headers={"content-type": "application/json"})
            assert large.status_code == 413
        for start in (b"GET /health HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01"):  # no TLS, nothing, a handshake's begin
            with socket.create_connection(("127.0.0.1", server.port), 20) as stranger:
                stranger.sendall(start)
                with contextlib.suppress(ConnectionError):
                    assert not stranger.recv(100).startswith(b"HTTP")
        plain = socket.create_connection(("127.0.0.1", server.port), 20)
        with trust.wrap_socket(plain, server_hostname="localhost") as late:
            late.sendall(b"GET /hea")
            assert late.recv(100).startswith(b"HTTP/1.1 408 ")
        server.process.terminate()
        assert server.wait(20) == 0
        assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    "problem", ["missing", "unreadable", "no PEM", "key of another", "certificate alone", "locked"]
)
def test_certificates_that_cannot_be(tiny: Path, certificate: tuple[Path, Path], tmp_path: Path, problem: str) -> None:
    other = tmp_path / "other.pem"
    options = ["--ssl-certfile", str(certificate[0]), "--ssl-keyfile", str(other)]
    if problem == "no PEM":
        other.write_text("hello")
    elif problem == "unreadable":
        other.mkdir()
    elif problem == "key of another":
        subprocess.run(["openssl", "genrsa", "-out", str(other), "2048"], check=True, capture_output=True)
    elif problem == "locked":
        lock = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(certificate[1]), "-out", str(other)]
        subprocess.run(lock, check=True, capture_output=True)
    elif problem == "certificate alone":
        options = options[:2]
    result = run_assay("serve", str(tiny), "--port", "0", *options, timeout=60)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert result.stderr.startswith("assay: Cannot ")
    assert ".pem" in result.stderr


# --- Unix sockets ---


def test_a_unix_socket(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "assay.sock"
    for _ in range(2):  # the second time in place of what a killed server has left
        with serving(tiny, "--uds", str(path), port=free_port(), wait=False) as server:
            assert server.process.stdout is not None
            assert f" is ready at unix:{path}: " in server.process.stdout.readline()
            assert path.stat().st_mode & 0o777 == 0o600
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.example") as client:
                assert client.post("/v1/classify", json={"input": "great"}).status_code == 200
            second = run_assay("serve", str(tiny), "--uds", str(path), timeout=60)
            assert (
                second.stderr
                == f"assay: Cannot listen on {path}: another server does. Stop it, or choose another --uds.\n"
            )
            server.process.kill()
            server.wait()
            assert path.exists()
    with serving(tiny, "--uds", str(path), port=free_port(), wait=False) as server:
        assert server.process.stdout is not None
        server.process.stdout.readline()
        server.process.terminate()
        assert server.wait() == 0
        assert not path.exists()


# --- stdout ---


@contextlib.contextmanager
def saying_to(stdout: IO[bytes] | int, tiny: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "assay", "serve", str(tiny), "--port", str(port), "--access-log", "none"]
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("where", ["full disk", "closed pipe"])
def test_a_stdout_that_cannot_be_written(tiny: Path, where: str) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        if where == "full disk":
            stdout: Any = stack.enter_context(open("/dev/full", "wb"))
        else:
            reading, stdout = os.pipe()
            os.close(reading)
        process = stack.enter_context(saying_to(stdout, tiny, port))
        if where == "closed pipe":
            os.close(stdout)
        assert process.stderr is not None
        assert "The ready line cannot be written to stdout: " in process.stderr.readline()
        response = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json={"input": "great"}, timeout=30)
        assert response.status_code == 200
        process.terminate()
        _, rest = process.communicate(timeout=30)
        assert (process.returncode, rest) == (0, "")

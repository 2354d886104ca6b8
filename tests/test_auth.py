"""API keys: who gets in, what is open, what a refusal looks like, and that no key is ever shown."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.routing import Route

from assay.commands.serve import api_keys
from assay.config import ServerConfig
from assay.errors import ConfigError
from assay.metrics import Metrics
from assay.server.auth import OPEN_PATHS, authentication
from tests.e2e.process import InProcess, in_process, run_assay, serving
from tests.golden_files import USUAL, check, load
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = ("first-key", "second-key")
GOLDEN = load("auth")
BODY = {"input": "great"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, num_hidden_layers=1)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny: Path) -> AsyncIterator[InProcess]:
    async with in_process(tiny, served_model_name="tiny", api_keys=KEYS) as running:
        yield running


# --- credentials ---


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "Bearer second-key"},
        {"authorization": "bearer first-key"},
        {"authorization": "BEARER   second-key"},
        {"X-API-Key": "first-key"},
        {"x-api-key": "second-key"},
        {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": "first-key"},
    ],
)
async def test_a_key_opens(server: InProcess, headers: dict[str, str]) -> None:
    response = await server.client.post("/v1/classify", json=BODY, headers=headers)
    assert response.status_code == 200, response.text
    assert "www-authenticate" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"Authorization": "Bearer first-key,second-key"},
        {"Authorization": "Bearer first-key second-key"},
        {"Authorization": b"Bearer first-key\xff"},
        {"X-API-Key": ""},
        {"X-API-Key": "Bearer first-key"},
        {"X-API-Key": "third-key"},
        {"Api-Key": "first-key"},
        {"Cookie": "api_key=first-key"},
    ],
)
async def test_anything_else_does_not(server: InProcess, headers: dict[str, Any]) -> None:
    response = await server.client.post("/v1/classify", json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_key_in_the_query_does_not_count(server: InProcess) -> None:
    assert (await server.client.get("/v1/models?api_key=first-key")).status_code == 401


# --- refusals ---


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    """Refusals in the shape of the path's own dialect."""
    await check(server.client, GOLDEN[name], USUAL)


async def test_the_body_is_not_read(server: InProcess) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "POST",
        "path": "/v1/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-api-key", b"wrong")],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(server.app(scope, receive, send), 10)
    assert sent[0]["status"] == 401


async def test_refusals_are_counted_and_echo_the_request_id(server: InProcess) -> None:
    async def counted(dialect: str) -> float:
        metrics = (await server.client.get("/metrics")).text
        line = f'assay_requests_total{{dialect="{dialect}",status="401"}} '
        return sum(float(found.removeprefix(line)) for found in metrics.splitlines() if found.startswith(line))

    before = [await counted(name) for name in ("classify", "kserve_infer", "other")]
    response = await server.client.post("/v1/classify", json=BODY, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    await server.client.post("/v2/models/tiny/infer", json={})
    await server.client.get("/nope")
    after = [await counted(name) for name in ("classify", "kserve_infer", "other")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]
    metrics = (await server.client.get("/metrics")).text
    assert float(metrics.partition('assay_errors_total{type="unauthorized"} ')[2].partition("\n")[0]) > 0


# --- paths ---


async def test_only_the_open_paths_are_open(server: InProcess) -> None:
    """Every route there is, and what there is not."""
    paths = {route.path.replace("{", "").replace("}", "") for route in server.app.routes if isinstance(route, Route)}
    assert len(paths) > 30
    open_paths = set()
    for path in sorted(paths | {"/nope", "/v1/nope", "/v2/health/nope", "/docs/static/docs.js", "/health/../load"}):
        statuses = {(await server.client.request(method, path)).status_code for method in ("GET", "POST", "OPTIONS")}
        if statuses != {401}:
            open_paths.add(path)
    assert open_paths == OPEN_PATHS & paths
    assert {"/health", "/health_generate", "/ready", "/ping", "/metrics"} <= open_paths


@pytest.mark.parametrize("path", ["/health/", "//health", "/Health", "/health%2f..%2fload", "/health;x", "/metrics/x"])
async def test_what_resembles_an_open_path_is_not(server: InProcess, path: str) -> None:
    assert (await server.client.get(path)).status_code == 401


async def test_with_a_key_everything_is_as_before(server: InProcess) -> None:
    headers = {"x-api-key": "second-key"}
    assert (await server.client.get("/v1/models", headers=headers)).status_code == 200
    assert (await server.client.get("/nope", headers=headers)).status_code == 404
    assert (await server.client.get("/v1/classify", headers=headers)).status_code == 405
    assert (await server.client.post("/v1/classify", json={"input": ""}, headers=headers)).status_code == 400


async def test_without_keys_nothing_is_asked_for(tiny: Path) -> None:
    async with in_process(tiny) as running:
        for headers in ({}, {"Authorization": "Bearer anything"}):
            response = await running.client.post("/v1/classify", json=BODY, headers=headers)
            assert response.status_code == 200


# --- keys stay secret ---


async def test_keys_are_shown_nowhere(server: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"x-api-key": "first-key"}
    caplog.set_level(logging.DEBUG)
    shown = [repr(server.service.config), str(server.service.config)]
    paths = ("/server_info", "/get_server_info", "/model_info", "/metrics", "/openapi.json", "/v1/models", "/nope")
    shown += [(await server.client.get(path, headers=headers)).text for path in paths]
    refused = await server.client.post("/v1/classify", json=BODY, headers={"x-api-key": "wrong-key"})
    shown += [refused.text, str(refused.headers)]
    shown += [record.getMessage() for record in caplog.records]
    assert len(shown) > 10
    for secret in (*KEYS, "wrong-key"):
        assert all(secret not in text for text in shown)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (("",), "API key 1 of 1 is empty"),
        (("good", ""), "API key 2 of 2 is empty"),
        (("good", " s3cret"), "API key 2 of 2 has spaces"),
        (("s3cret\n",), "API key 1 of 1 has spaces"),
        (("schlüssel-s3cret",), "beyond ASCII"),
        ("s3cret", "must be a tuple"),
        ((b"s3cret",), "must be a tuple of strings"),
    ],
)
async def test_bad_keys_are_refused_and_not_quoted(keys: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refusal:
        ServerConfig(api_keys=keys)
    assert "s3cret" not in refusal.value.message


async def test_a_configuration_that_differs_in_keys_differs() -> None:
    assert ServerConfig(api_keys=("a",)) != ServerConfig(api_keys=("b",))
    assert "api_keys" in {field.name for field in dataclasses.fields(ServerConfig)}


# --- where keys come from ---


async def test_the_command_line_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_API_KEY", raising=False)
    assert api_keys(None) == ()
    monkeypatch.setenv("ASSAY_API_KEY", "a, b,c\n")
    assert api_keys(None) == ("a", "b", "c")
    assert api_keys(["d", "e,f"]) == ("d", "e,f")
    monkeypatch.setenv("ASSAY_API_KEY", "")
    assert api_keys(None) == ("",), "which ServerConfig refuses: an empty variable leaves no server open"


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [
        ("127.0.0.1", (), False),
        ("127.8.8.8", (), False),
        ("::1", (), False),
        ("localhost", (), False),
        ("0.0.0.0", (), True),
        ("::", (), True),
        ("10.0.0.7", (), True),
        ("", (), True),
        ("host.example", (), True),
        ("0.0.0.0", ("secret",), False),
    ],
)
async def test_an_open_server_that_others_reach_is_warned_of(
    host: str, keys: tuple[str, ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(host=host, api_keys=keys)
    with caplog.at_level(logging.WARNING):
        middleware = authentication(config, Metrics())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert len(middleware) == bool(keys)


# --- the real process ---


@pytest.mark.slow
async def test_the_process_reads_the_environment(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_API_KEY", "first-key,second-key")
    with serving(tiny, "--log-level", "debug") as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            assert (await client.get("/health")).status_code == 200
            refused = await client.post("/v1/classify", json=BODY, headers={"Authorization": "Bearer wrong-key"})
            assert (refused.status_code, refused.json()["error"]) == (401, "Unauthorized")
            for key in KEYS:
                headers = {"Authorization": f"Bearer {key}"}
                assert (await client.post("/v1/classify", json=BODY, headers=headers)).status_code == 200
        shown = running.log() + running.ready
        assert not any(key in shown for key in (*KEYS, "wrong-key"))


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "options"), [("", ()), ("good,,s3cret", ()), ("good", ("--api-key", ""))])
async def test_an_empty_key_is_one_line(
    variable: str, options: tuple[str, ...], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_API_KEY", variable)
    result = run_assay("serve", str(tiny), "--port", "0", *options, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("assay: API key ")
    assert len(result.stderr.splitlines()) == 1
    assert "s3cret" not in result.stderr

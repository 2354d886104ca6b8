"""/openapi.json and /docs: valid, complete, and true of what the server takes and answers."""

import json
import re
from collections.abc import AsyncIterator
from inspect import getmodule
from pathlib import Path
from typing import Any

import msgspec
import openapi_spec_validator
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from starlette.routing import Route

from assay.dialects import DIALECTS, PATHS, spoken_at
from assay.dialects.dialect import Dialect, Incoming
from assay.errors import (
    AssayError,
    ClientGoneError,
    HeadTooLargeError,
    MethodError,
    NotFoundError,
    SetupError,
    UriTooLongError,
)
from assay.server import docs_page, openapi
from assay.server.endpoint import Endpoint
from assay.server.openapi import openapi_document
from assay.server.status import ENDPOINTS
from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(openapi_document("tiny", ENDPOINTS)))
UNDESCRIBED = {"/openapi.json", "/docs"}  # the document itself, and the page that shows it
GOLDEN_FOLDER = Path(__file__).parent / "golden"
GOLDEN = sorted(str(path.relative_to(GOLDEN_FOLDER)) for path in GOLDEN_FOLDER.rglob("*.json"))
# Placeholders of the golden files that do not stand for a string.
NUMBERS: dict[str, Any] = {
    "<score>": 0.5,
    "<number>": 1.5,
    "<logit>": 1.5,
    "<logits>": [1.5, -1.5],
    "<probs>": [0.5, 0.5],
    "<seconds>": 0.1,
    "<index>": 0,
    "<time>": 1,
    "<created>": 1,
    "<bool>": True,
}
EXAMPLES = [(dialect, path) for dialect in DIALECTS for path in dialect.paths]


def plain(path: str) -> str:
    return path.replace(":path}", "}")


def url_of(path: str, model: str = "tiny") -> str:
    return plain(path).replace("{model}", model).replace("{version}", "1")


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def conforms(value: Any, content: dict[str, Any]) -> None:
    """The value is what the schema of a body says."""
    errors = [error.message for error in validator(content["application/json"]["schema"]).iter_errors(value)]
    assert not errors, errors


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[int, InProcess]]:
    """A classifier and a model with one label, by their number of labels."""
    folders = {count: tmp_path_factory.mktemp(f"labels{count}") for count in (1, 2)}
    save_bert(folders[1], num_labels=1)
    save_bert(folders[2], num_labels=2, id2label={0: "safe", 1: "toxic"}, problem_type="multi_label_classification")
    async with (
        in_process(folders[1], served_model_name="tiny") as one,
        in_process(folders[2], served_model_name="tiny") as two,
    ):
        yield {1: one, 2: two}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    """A server that asks for a key, and never loads."""
    folder = tmp_path_factory.mktemp("locked")
    async with in_process(folder, load=lambda *_: None, wait=False, api_keys=("secret",)) as running:
        running.service.models[0].engine = None
        yield running


# --- the document ---


async def test_it_is_openapi_3_1(servers: dict[int, InProcess]) -> None:
    response = await servers[2].client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(DOCUMENT)


async def test_every_route_is_described_and_every_description_routed(servers: dict[int, InProcess]) -> None:
    routes = [route for route in servers[2].app.routes if isinstance(route, Route) and route.path not in UNDESCRIBED]
    assert {plain(path) for path in (*PATHS, *(route.path for route in routes))} == set(DOCUMENT["paths"])
    for path, item in DOCUMENT["paths"].items():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            response = await servers[2].client.request(method, url_of(path))
            assert (response.status_code == 405) is (method.lower() not in item), (method, path)


def kinds(error: type[AssayError]) -> set[type[AssayError]]:
    return {error}.union(*map(kinds, error.__subclasses__()))


async def test_no_kind_of_error_is_left_out() -> None:
    unseen = {AssayError, ClientGoneError} | kinds(SetupError)  # by any caller
    unscored = {NotFoundError, MethodError, UriTooLongError, HeadTooLargeError}  # where there is no operation
    assert {type(error) for error in openapi._REFUSALS} == kinds(AssayError) - unseen - unscored


async def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


async def test_it_is_made_once_and_not_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        docs_page, "openapi_document", lambda model, endpoints: made.append(model) or {"openapi": model}
    )
    async with in_process(tmp_path, load=lambda *_: None, wait=False, served_model_name="late") as running:
        assert made == []
        for _ in range(2):
            assert (await running.client.get("/openapi.json")).json() == {"openapi": "late"}
    assert made == ["late"]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_a_dialect_names_the_types_that_it_reads_and_writes(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, read = getmodule(dialect.render), []
    decode = module.decode  # type: ignore[union-attr]
    monkeypatch.setattr(module, "decode", lambda body, wire: read.append(wire) or decode(body, wire))
    dialect.parse(Incoming(msgspec.json.encode(dialect.example), {"model": "tiny"}))
    assert read == [dialect.request]
    operation = DOCUMENT["paths"][plain(dialect.paths[0])][dialect.methods[0].lower()]
    shown = operation["responses"]["200"]["content"]["application/json"]
    conforms(shown["examples"][dialect.name]["value"], {"application/json": shown})
    assert operation["requestBody"]["content"]["application/json"]["examples"][dialect.name]["value"] == dialect.example
    assert dialect.summary


# --- the examples, answered ---


def shape(value: Any) -> Any:
    """Keys and types, without what depends on the model: its labels and numbers."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


@pytest.mark.parametrize(("dialect", "path"), EXAMPLES, ids=[f"{d.name}:{path}" for d, path in EXAMPLES])
async def test_every_example_is_answered_as_described(
    servers: dict[int, InProcess], dialect: Dialect, path: str
) -> None:
    server = servers[len(dialect.example_labels)]
    for method in dialect.methods:
        operation = DOCUMENT["paths"][plain(path)][method.lower()]
        conforms(dialect.example, operation["requestBody"]["content"])
        response = await server.client.request(method, url_of(path), json=dialect.example)
        assert response.status_code == 200, response.text
        described = operation["responses"]["200"]
        conforms(response.json(), described["content"])
        assert {name.lower() for name in described["headers"]} >= {
            name for name in response.headers if name[:2] == "x-"
        }
        shown = described["content"]["application/json"]["examples"][dialect.name]["value"]
        if dialect.name not in ("detector", "guardrail", "moderation", "kserve_predict", "tei_predict", "hf_inference"):
            assert shape(shown) == shape(response.json())


@pytest.mark.parametrize(("dialect", "path"), EXAMPLES, ids=[f"{d.name}:{path}" for d, path in EXAMPLES])
async def test_refusals_are_as_described(servers: dict[int, InProcess], dialect: Dialect, path: str) -> None:
    """Another model's name, another kind of model, no key in the body, no JSON, another media type."""
    fitting = len(dialect.example_labels)
    client, other = servers[fitting].client, servers[3 - fitting].client
    method, body = dialect.methods[0], dialect.example
    operation = DOCUMENT["paths"][plain(path)][method.lower()]
    responses = [
        await client.request(method, url_of(path, "another"), json=body | {"model": "another"}),
        await other.request(method, url_of(path), json=body),
        await client.request(method, url_of(path), json={}),
        await client.request(method, url_of(path), content=b"{", headers={"content-type": "application/json"}),
        await client.request(method, url_of(path), content=b"{}"),
    ]
    for response in responses:
        conforms(response.json(), operation["responses"][str(response.status_code)]["content"])
    errors = operation["responses"].get("404", {}).get("content", {}).get("application/json", {}).get("examples", {})
    if dialect.name != "guardrail":  # whose model is named further in
        assert (responses[0].status_code == 404) is (f"{dialect.name}_model_not_found" in errors)


@pytest.mark.parametrize(
    ("path", "endpoint"), [(path, endpoint) for endpoint in ENDPOINTS if endpoint.request for path in endpoint.paths]
)
async def test_every_endpoints_example_is_answered_as_described(
    servers: dict[int, InProcess], path: str, endpoint: Endpoint
) -> None:
    operation = DOCUMENT["paths"][plain(path)][endpoint.methods[0].lower()]
    conforms(endpoint.example, operation["requestBody"]["content"])
    response = await servers[2].client.request(endpoint.methods[0], url_of(path), json=endpoint.example)
    assert response.status_code == 200, response.text
    conforms(response.json(), operation["responses"]["200"]["content"])


@pytest.mark.parametrize("path", list(DOCUMENT["paths"]))
async def test_who_has_no_key_is_refused_as_described(locked: InProcess, path: str) -> None:
    for method, operation in DOCUMENT["paths"][path].items():
        response = await locked.client.request(method, url_of(path), content=b"{}")
        assert (response.status_code == 401) is ("401" in operation["responses"]) is (operation.get("security") != [])
        if response.status_code == 401:
            described = operation["responses"]["401"]
            conforms(response.json(), described["content"])
            assert "www-authenticate" in response.headers
            assert "WWW-Authenticate" in described["headers"]


@pytest.mark.parametrize(
    "path", [path for endpoint in ENDPOINTS for path in endpoint.paths if "GET" in endpoint.methods]
)
async def test_what_a_server_says_of_itself_is_as_described(servers: dict[int, InProcess], path: str) -> None:
    response = await servers[2].client.get(url_of(path))
    assert response.status_code == 200, response.text
    content = DOCUMENT["paths"][plain(path)]["get"]["responses"]["200"]["content"]
    assert list(content) == [response.headers["content-type"]]
    if "application/json" in content:
        conforms(response.json(), content)


@pytest.mark.parametrize("path", list(DOCUMENT["paths"]))
async def test_refusals_while_loading_are_as_described(tmp_path: Path, path: str) -> None:
    async with in_process(tmp_path, load=lambda *_: None, wait=False) as running:
        running.service.models[0].engine = None
        for method, operation in DOCUMENT["paths"][path].items():
            body = None
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                body = (
                    next(iter(content["examples"].values()))["value"] if "examples" in content else content["example"]
                )
            name = running.service.default.name
            response = await running.client.request(method, url_of(path, name), json=body)
            described = operation["responses"][str(response.status_code)]
            if response.headers["content-type"] == "application/json":
                conforms(response.json(), described["content"])


# --- the golden files ---


def unmasked(value: Any) -> Any:
    """A golden body with values in the place of its placeholders."""
    if isinstance(value, dict):
        return {key: unmasked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unmasked(item) for item in value]
    return NUMBERS.get(value, value) if isinstance(value, str) else value


def described_path(path: str) -> str:
    """A model's name may hold slashes, so the longest path that fits is meant; "" where none does."""
    fitting = [template for template in DOCUMENT["paths"] if re.fullmatch(re.sub(r"{\w+}", ".+", template), path)]
    return max(fitting, key=len, default="")


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden_files_are_as_described(name: str) -> None:
    golden = json.loads((GOLDEN_FOLDER / name).read_text("utf-8").replace("<vocab>", "130"))
    request, response = golden["request"], golden["response"]
    path = described_path(request["path"])
    operation = DOCUMENT["paths"].get(path, {}).get(request["method"].lower())
    body = unmasked(response["body"])
    if operation is None:
        assert response["status"] in (401, 405 if path else 404)
        speaks = {plain(template): dialects[0] for template, dialects in PATHS.items()}.get(path)
        refusal = msgspec.convert(body, type=(speaks or spoken_at(request["path"])).error)
        assert msgspec.to_builtins(refusal) == body
        return
    described = operation["responses"][str(response["status"])]
    conforms(body, described["content"])
    assert {key.lower() for key in described["headers"]} >= {key.lower() for key in response.get("headers", {})}
    if response["status"] == 200 and "requestBody" in operation:
        sent = request["body"]
        conforms(json.loads(sent) if isinstance(sent, str) else sent, operation["requestBody"]["content"])


# --- the page ---


async def test_the_page_and_all_it_needs_come_from_here(servers: dict[int, InProcess]) -> None:
    page = await servers[2].client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert set(re.findall(r"'[\w-]+'|data:|https?:|\*", policy)) == {"'none'", "'self'", "data:"}
    assert "<script>" not in page.text
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(links) == 5
    types = {".js": "text/javascript", ".css": "text/css", "json": "application/json"}
    for link in links:
        if link == "data:,":
            continue
        assert "//" not in link
        asset = await servers[2].client.get(f"/{link}")
        assert asset.status_code == 200, link
        assert asset.headers["content-type"].startswith(next(kind for end, kind in types.items() if link.endswith(end)))
    start = (await servers[2].client.get("/docs/static/docs.js")).text
    assert "://" not in start
    assert "validatorUrl: null" in start


async def test_nothing_else_is_served_from_the_package(servers: dict[int, InProcess]) -> None:
    for path in ("/docs/static/", "/docs/static/%2e%2e/docs_page.py", "/docs/static/../docs_page.py"):
        assert (await servers[2].client.get(path)).status_code in (307, 404)


async def test_the_notice_names_what_is_vendored() -> None:
    root = Path(docs_page.__file__).parents[2]
    for folder in (root / "assay" / "server" / "static").iterdir():
        if folder.is_dir():
            name, _, version = folder.name.rpartition("-")
            assert {"LICENSE", "NOTICE"} <= {file.name for file in folder.iterdir()}
            assert re.search(rf"{name}[\w-]* {re.escape(version)}", (root / "NOTICE").read_text("utf-8"))

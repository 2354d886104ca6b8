"""Several models in one process: chosen by name, listed, counted apart; one name each."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from assay.config import EngineConfig, ServerConfig
from assay.errors import ConfigError
from assay.server.app import build_app
from assay.server.service import Service
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_bert(folder / "a", seed=1, id2label={0: "bad", 1: "fair", 2: "good"})
    save_bert(folder / "b", seed=2, num_labels=1)
    return folder / "a", folder / "b"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folders: tuple[Path, Path]) -> AsyncIterator[httpx.AsyncClient]:
    configs = [EngineConfig(str(folders[0]), name="mood"), EngineConfig(str(folders[1]), name="ranker")]
    loaded: asyncio.Queue[Exception | None] = asyncio.Queue()
    app = build_app(Service(ServerConfig(), configs), loaded.put_nowait)
    async with app.router.lifespan_context(app):
        assert await asyncio.wait_for(loaded.get(), 30) is None
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def ask(client: httpx.AsyncClient, **body: object) -> httpx.Response:
    return await client.post("/v1/classify", json={"input": "great", **body})


async def test_the_name_chooses(client: httpx.AsyncClient) -> None:
    mood, ranker = await ask(client, model="mood"), await ask(client, model="ranker")
    assert mood.json()["model"] == "mood"
    assert mood.json()["data"][0]["num_classes"] == 3
    assert ranker.json()["model"] == "ranker"
    assert ranker.json()["data"][0]["num_classes"] == 1


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": None}])
async def test_the_first_is_the_default(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await ask(client, **body)).json()["model"] == "mood"


async def test_another_name_is_refused_and_told_what_there_is(client: httpx.AsyncClient) -> None:
    response = await ask(client, model="other")
    assert response.status_code == 404
    assert response.json()["error"] == "The model `other` does not exist. This server has `mood`, `ranker`."


async def test_other_dialects_choose_too(client: httpx.AsyncClient) -> None:
    body = {"query": "the coffee", "documents": ["was great", "so"]}
    assert (await client.post("/rerank", json=body | {"model": "ranker"})).status_code == 200
    assert (await client.post("/rerank", json=body | {"model": "mood"})).status_code == 400
    assert (await client.post("/v1/models/ranker:predict", json={"instances": ["so"]})).status_code == 200


async def test_both_are_listed_described_and_counted(client: httpx.AsyncClient) -> None:
    await ask(client, model="ranker")
    assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["mood", "ranker"]
    assert (await client.get("/model_info")).json()["served_model_name"] == "mood"
    assert (await client.get("/model_info?model=ranker")).json()["id2label"] == {"0": "LABEL_0"}
    assert (await client.get("/health_generate")).status_code == 200
    metrics = (await client.get("/metrics")).text
    assert 'assay_sequences_total{model="mood"}' in metrics
    assert 'assay_sequences_total{model="ranker"}' in metrics


async def test_two_models_need_two_names(folders: tuple[Path, Path]) -> None:
    same = [EngineConfig(str(folders[0]), name="x"), EngineConfig(str(folders[1]), name="x")]
    with pytest.raises(ConfigError, match="same name"):
        Service(ServerConfig(), same)
    with pytest.raises(ConfigError, match="NAME=MODEL"):
        Service(ServerConfig(served_model_name="y"), same)

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
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_bert(folder / "a", seed=1, id2label={0: "bad", 1: "fair", 2: "good"})
    save_bert(folder / "b", seed=2, num_labels=1, max_position_embeddings=64)
    save_bert(folder / "c", seed=3, num_labels=2, id2label={0: "safe", 1: "toxic"})
    return folder / "a", folder / "b", folder / "c"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folders: tuple[Path, Path, Path]) -> AsyncIterator[httpx.AsyncClient]:
    names = ("mood", "ranker", "flagger")
    configs = [EngineConfig(str(folder), name=name) for folder, name in zip(folders, names, strict=True)]
    loaded: asyncio.Queue[Exception | None] = asyncio.Queue()
    app = build_app(Service(ServerConfig(), configs), loaded.put_nowait)
    async with app.router.lifespan_context(app):
        assert await asyncio.wait_for(loaded.get(), 30) is None
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
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
    assert response.json()["error"] == "The model `other` does not exist. This server has `mood`, `ranker`, `flagger`."


async def test_other_dialects_choose_too(client: httpx.AsyncClient) -> None:
    body = {"query": "the coffee", "documents": ["was great", "so"]}
    assert (await client.post("/rerank", json=body | {"model": "ranker"})).status_code == 200
    assert (await client.post("/rerank", json=body | {"model": "mood"})).status_code == 400
    assert (await client.post("/v1/models/ranker:predict", json={"instances": ["so"]})).status_code == 200


@pytest.mark.parametrize(
    ("name", "answers"),
    [("mood", "mood"), ("flagger", "flagger"), ("omni-moderation-latest", "mood"), ("", "mood"), (None, "mood")],
)
async def test_a_moderation_of_another_name_is_the_defaults(
    client: httpx.AsyncClient, name: str | None, answers: str
) -> None:
    answer = (await client.post("/v1/moderations", json={"input": "great", "model": name})).json()
    assert answer["model"] == answers
    labels = {"mood": ["bad", "fair", "good"], "flagger": ["safe", "toxic"]}[answers]
    assert list(answer["results"][0]["categories"]) == labels


@pytest.mark.parametrize(
    ("detector_id", "label"), [("flagger", "toxic"), ("mood", "bad"), ("other", "bad"), (None, "bad")]
)
async def test_the_header_chooses_the_detector(client: httpx.AsyncClient, detector_id: str | None, label: str) -> None:
    headers = {} if detector_id is None else {"Detector-Id": detector_id}
    body = {"contents": ["great"], "detector_params": {"threshold": 0}}
    response = await client.post("/api/v1/text/contents", json=body, headers=headers)
    assert response.json()[0][0]["detection"] == label


async def test_the_proxys_configuration_chooses_the_guardrail(client: httpx.AsyncClient) -> None:
    async def ask_guardrail(**params: object) -> httpx.Response:
        body = {"texts": ["great"], "model": "gpt-5", "additional_provider_specific_params": {"threshold": 0, **params}}
        return await client.post("/beta/litellm_basic_guardrail_api", json=body)

    assert (await ask_guardrail(model="flagger")).json()["blocked_reason"].startswith("toxic: ")
    assert not (await ask_guardrail()).json()["blocked_reason"].startswith("toxic: ")
    refused = await ask_guardrail(model="other")
    assert (refused.status_code, list(refused.json())) == (404, ["detail"])


async def test_the_path_chooses_the_reward_model(client: httpx.AsyncClient) -> None:
    body = {"query": ["great"]}
    raw = (await ask(client, model="ranker", use_activation=False, add_special_tokens=False)).json()
    rewarded = await client.post("/v1/models/ranker/get_reward", json=body)
    assert rewarded.json()["rewards"] == pytest.approx(raw["data"][0]["probs"], abs=1e-5)
    assert "3 labels" in (await client.post("/get_reward", json=body)).json()["detail"]
    refused = await client.post("/v1/models/other/get_reward", json=body)
    assert (refused.status_code, list(refused.json())) == (404, ["detail"])


async def test_tokens_and_readiness_are_each_models_own(client: httpx.AsyncClient) -> None:
    for name, length in (("mood", 128), ("ranker", 64)):
        answer = (await client.post("/tokenize", json={"prompt": "great", "model": name})).json()
        assert answer["max_model_len"] == length
        card = (await client.get(f"/v1/models/{name}")).json()
        assert (card["id"], card["max_model_len"], card["ready"]) == (name, length, True)
        metadata = (await client.get(f"/v2/models/{name}")).json()
        assert metadata["outputs"][1]["shape"] == [-1, {"mood": 3, "ranker": 1}[name]]


async def test_all_are_listed_described_and_counted(client: httpx.AsyncClient) -> None:
    await ask(client, model="ranker")
    assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["mood", "ranker", "flagger"]
    assert (await client.get("/model_info")).json()["served_model_name"] == "mood"
    assert (await client.get("/model_info?model=ranker")).json()["id2label"] == {"0": "LABEL_0"}
    assert (await client.get("/health_generate")).status_code == 200
    metrics = (await client.get("/metrics")).text
    assert 'assay_sequences_total{model="mood"}' in metrics
    assert 'assay_sequences_total{model="ranker"}' in metrics


async def test_two_models_need_two_names(folders: tuple[Path, Path, Path]) -> None:
    same = [EngineConfig(str(folders[0]), name="x"), EngineConfig(str(folders[1]), name="x")]
    with pytest.raises(ConfigError, match="same name"):
        Service(ServerConfig(), same)
    with pytest.raises(ConfigError, match="NAME=MODEL"):
        Service(ServerConfig(served_model_name="y"), same)

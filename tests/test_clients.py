"""Unmodified clients that live in our own environment, against a real server: their answers and their own exceptions.

litellm and nemoguardrails have files of their own, retries too, since they need a server that can be made to refuse.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import openai
import pytest
import requests
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError as HubBadRequestError
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer

from tests.e2e.process import Server, serving
from tests.tiny import bert_logits, save_bert

pytestmark = pytest.mark.slow

KEY = "a-key-of-ours"
QUERY = "the coffee"
DOCUMENTS = ["was great", "so", "the update broke everything", "loved", "new café"]
LONG = "great " * 300


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A reranker and a guard: their folders, and the same models as transformers has them."""
    folder = tmp_path_factory.mktemp("models")
    guard = {"num_labels": 2, "id2label": {0: "safe", 1: "toxic"}}
    return {
        "reranker": (folder / "reranker", save_bert(folder / "reranker", seed=2, num_labels=1)),
        "guard": (folder / "guard", save_bert(folder / "guard", **guard)),
    }


@pytest.fixture(scope="module")
def server(models: dict[str, tuple[Path, Any]]) -> Iterator[Server]:
    """The guard is the default model. Whoever has no key is refused."""
    named = [f"{name}={models[name][0]}" for name in ("guard", "reranker")]
    with serving(named[0], named[1], "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def toxic(models: dict[str, tuple[Path, Any]]) -> float:
    """What transformers says of QUERY: its probability to be toxic."""
    folder, model = models["guard"]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(QUERY).ids
    return bert_logits(model, ids).softmax(0)[1].item()


@pytest.fixture(scope="module")
def relevance(models: dict[str, tuple[Path, Any]]) -> list[float]:
    """What transformers says of each document."""
    folder, model = models["reranker"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encodings = [tokenizer.encode(QUERY, document) for document in DOCUMENTS]
    logits = [bert_logits(model, encoding.ids, encoding.type_ids).item() for encoding in encodings]
    return [1 / (1 + math.exp(-logit)) for logit in logits]


def ranking(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index])


# --- openai ---


@pytest.fixture(scope="module")
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0) as client:
        yield client


def test_openai_moderations(openai_client: openai.OpenAI, toxic: float) -> None:
    (result,) = openai_client.moderations.create(input=QUERY).results
    assert result.flagged is (toxic >= 0.5)
    assert result.category_scores.model_extra == pytest.approx({"safe": 1 - toxic, "toxic": toxic}, abs=1e-5)
    both = openai_client.moderations.create(model="omni-moderation-latest", input=[QUERY, "so"])
    assert both.model == "guard", "a name of OpenAI's is the default model's"
    assert len(both.results) == 2


def test_openai_embeddings_are_raw_logits(openai_client: openai.OpenAI, models: dict[str, tuple[Path, Any]]) -> None:
    folder, model = models["guard"]
    expected = bert_logits(model, Tokenizer.from_file(str(folder / "tokenizer.json")).encode(QUERY).ids).tolist()
    for encoding in ({}, {"encoding_format": "float"}):  # the client's own default is base64
        answer = openai_client.embeddings.create(model="guard", input=QUERY, **encoding)  # type: ignore[arg-type]
        assert answer.data[0].embedding == pytest.approx(expected, abs=1e-4)


def test_openai_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["guard", "reranker"]


def test_openai_posts_to_any_path(openai_client: openai.OpenAI, toxic: float) -> None:
    answer: Any = openai_client.post("/classify", body={"model": "guard", "input": QUERY}, cast_to=object)
    assert answer["data"][0]["probs"] == pytest.approx([1 - toxic, toxic], abs=1e-5)


def test_openai_errors(server: Server, openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be empty") as refused:
        openai_client.moderations.create(input=" ")
    assert (refused.value.status_code, refused.value.param) == (400, "input")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 128 tokens") as refused:
        openai_client.moderations.create(input=LONG)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
        openai_client.embeddings.create(model="other", input=QUERY)
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.chat.completions.create(model="guard", messages=[{"role": "user", "content": QUERY}])
    # The document has a string under `error`, of which this client makes its `body` and no message.
    assert missing.value.body == "There is no /v1/chat/completions here; POST /v1/classify, or GET /v1/models."
    with (
        openai.OpenAI(api_key="wrong", base_url=f"{server.url}/v1", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.moderations.create(input=QUERY)


# --- cohere ---


@pytest.mark.parametrize("version", [cohere.Client, cohere.ClientV2])
def test_cohere(server: Server, relevance: list[float], version: Callable[..., Any]) -> None:
    ranked = ranking(relevance)
    with version(api_key=KEY, base_url=server.url) as client:
        answer = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
        assert [item.index for item in answer.results] == ranked
        assert [item.relevance_score for item in answer.results] == pytest.approx(
            [relevance[index] for index in ranked], abs=1e-5
        )
        best = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS, top_n=2)
        assert [item.index for item in best.results] == ranked[:2]


@pytest.mark.parametrize("version", [cohere.Client, cohere.ClientV2])
def test_cohere_errors(server: Server, version: Callable[..., Any]) -> None:
    with version(api_key=KEY, base_url=server.url) as client:
        for kind, message, change in (
            (cohere.BadRequestError, "`query` cannot be empty", {"query": ""}),
            (cohere.BadRequestError, "maximum context length is 128 tokens", {"documents": [LONG]}),
            (cohere.BadRequestError, "has 2 labels", {"model": "guard"}),
            (cohere.NotFoundError, "does not exist", {"model": "other"}),
        ):
            with pytest.raises(kind, match=message):
                client.rerank(**{"model": "reranker", "query": QUERY, "documents": DOCUMENTS} | change)
    with version(api_key="wrong", base_url=server.url) as stranger, pytest.raises(cohere.UnauthorizedError):
        stranger.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)


@pytest.mark.parametrize("version", [cohere.AsyncClient, cohere.AsyncClientV2])
def test_cohere_async(server: Server, relevance: list[float], version: Callable[..., Any]) -> None:
    async def indexes() -> list[list[int]]:
        async with version(api_key=KEY, base_url=server.url) as client:
            calls = (client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS) for _ in range(8))
            return [[item.index for item in answer.results] for answer in await asyncio.gather(*calls)]

    assert asyncio.run(indexes()) == [ranking(relevance)] * 8


# --- huggingface_hub ---


def test_inference_client(server: Server, toxic: float) -> None:
    client = InferenceClient(server.url, token=KEY)
    rows = client.text_classification(QUERY)
    assert {row.label: row.score for row in rows} == pytest.approx({"safe": 1 - toxic, "toxic": toxic}, abs=1e-5)
    (best,) = client.text_classification(QUERY, top_k=1)
    assert best.label == max(rows, key=lambda row: row.score).label


HUB_REFUSALS: dict[str, Callable[[Any], Any]] = {
    "empty or whitespace only": lambda client: client.text_classification(" "),
    "maximum context length is 128 tokens": lambda client: client.text_classification(LONG),
    "asks for zero-shot classification": lambda client: client.zero_shot_classification(QUERY, ["food", "travel"]),
    "Invalid request": lambda client: client.sentence_similarity(QUERY, DOCUMENTS),
}


@pytest.mark.parametrize("message", HUB_REFUSALS)
def test_inference_clients_errors(server: Server, message: str) -> None:
    with pytest.raises(HubBadRequestError, match=message) as refused:
        HUB_REFUSALS[message](InferenceClient(server.url, token=KEY))
    assert refused.value.response.status_code == 400

    async def ask() -> None:
        async with AsyncInferenceClient(server.url, token=KEY) as client:
            answer: Awaitable[Any] = HUB_REFUSALS[message](client)
            await answer

    with pytest.raises(HubBadRequestError, match=message):
        asyncio.run(ask())


def test_inference_client_without_a_key(server: Server) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        InferenceClient(server.url, token="wrong").text_classification(QUERY)
    assert refused.value.response.status_code == 401


# --- plain HTTP ---


def test_requests(server: Server, toxic: float) -> None:
    """The document's own example is in docs/clients.md, and is run with the others there."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {KEY}"
        answer = session.post(f"{server.url}/v1/classify", json={"model": "guard", "input": QUERY}, timeout=10)
        assert answer.json()["data"][0]["probs"] == pytest.approx([1 - toxic, toxic], abs=1e-5)
        form = session.post(f"{server.url}/v1/classify", data={"input": QUERY}, timeout=10)
        assert (form.status_code, form.json()["type"]) == (415, "unsupported_media_type")
        with pytest.raises(requests.HTTPError, match="400 Client Error"):
            session.post(f"{server.url}/v1/classify", json={"input": LONG}, timeout=10).raise_for_status()
        assert session.get(f"{server.url}/v1/classify", timeout=10).headers["allow"] == "POST"


def test_tei_style_clients_by_http(server: Server, toxic: float) -> None:
    """TEI has no client of its own for classification; what its users write is this."""
    with httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}) as client:
        rows = client.post("/predict", json={"inputs": QUERY}).json()
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(
            {"safe": 1 - toxic, "toxic": toxic}, abs=1e-5
        )
        too_long = client.post("/predict", json={"inputs": LONG})
        assert (too_long.status_code, too_long.json()["error_type"]) == (413, "Validation")

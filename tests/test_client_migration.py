"""What docs/clients.md says of assay to those who come from vLLM, SGLang, TEI or Infinity. Knows none of the four."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.main import get_command

from assay.cli import app
from tests.e2e.process import REPOSITORY, InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = "great " * 100
RERANK = {"query": "the coffee", "documents": ["was great", "so"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def classifier(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    folder = tmp_path_factory.mktemp("two")
    save_bert(folder, num_labels=2)
    async with in_process(folder, served_model_name="two", max_request_inputs=4) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    folder = tmp_path_factory.mktemp("one")
    save_bert(folder, num_labels=1, seed=2)
    async with in_process(folder, served_model_name="one", max_request_inputs=4) as running:
        yield running


async def post(server: InProcess, path: str, **body: Any) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


# path and body → status, keys of the error
NESTED, DOCUMENT = {"error"}, {"error", "type", "code", "message", "param", "object"}
TEI = {"error", "error_type"}
REFUSALS: dict[str, tuple[str, str, dict[str, Any], int, set[str]]] = {
    "vLLM, unknown model": ("classifier", "/classify", {"model": "x", "input": "so"}, 404, DOCUMENT),
    "vLLM, white space": ("classifier", "/classify", {"input": " "}, 400, DOCUMENT),
    "vLLM, too long": ("classifier", "/classify", {"input": LONG * 2}, 400, DOCUMENT),
    "vLLM, too many": ("classifier", "/classify", {"input": ["so"] * 5}, 413, DOCUMENT),
    "vLLM, template": ("classifier", "/classify", {"messages": [{}], "chat_template": "x"}, 400, DOCUMENT),
    "vLLM, labels at score": ("classifier", "/score", {"text_1": "a", "text_2": "b"}, 400, NESTED),
    "vLLM, labels at rerank": ("classifier", "/rerank", RERANK, 400, NESTED),
    "vLLM, pooling task": ("classifier", "/pooling", {"input": "so", "task": "embed"}, 400, NESTED),
    "vLLM, pooling base64": ("classifier", "/pooling", {"input": "so", "encoding_format": "base64"}, 400, NESTED),
    "SGLang, label tokens": (
        "classifier",
        "/v1/score",
        {"query": "a", "items": ["b"], "label_token_ids": [1]},
        400,
        DOCUMENT - {"error"},
    ),
    "SGLang, native": ("classifier", "/classify", {"text": ""}, 400, NESTED),
    "TEI, too long": ("classifier", "/predict", {"inputs": LONG * 2}, 413, TEI),
    "TEI, too many": ("classifier", "/predict", {"inputs": [["so"]] * 5}, 413, TEI),
    "TEI, malformed": ("classifier", "/predict", {"inputs": 5}, 422, TEI),
    "TEI, empty batch": ("classifier", "/predict", {"inputs": []}, 422, TEI),
    "TEI, empty text": ("classifier", "/predict", {"inputs": ""}, 422, TEI),
    "TEI, wrong kind": ("classifier", "/rerank", {"query": "a", "texts": ["b"]}, 424, TEI),
    "TEI, embed": ("classifier", "/embed", {"inputs": "so"}, 404, DOCUMENT),
    "TEI, similarity": ("classifier", "/similarity", {"inputs": {}}, 404, DOCUMENT),
    "TEI, decode": ("classifier", "/decode", {"ids": [1]}, 404, DOCUMENT),
    "TEI, tokenize": ("classifier", "/tokenize", {"inputs": "so"}, 400, DOCUMENT),
    "Infinity, unset model": ("reranker", "/rerank", RERANK | {"model": "default/not-specified"}, 404, NESTED),
    "Infinity, malformed": ("reranker", "/rerank", RERANK | {"documents": 5}, 400, NESTED),
    "Infinity, empty": ("classifier", "/classify", {"input": []}, 400, DOCUMENT),
    "Infinity, too long": ("reranker", "/rerank", RERANK | {"documents": [LONG * 2]}, 400, NESTED),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusals(request: pytest.FixtureRequest, classifier: InProcess, reranker: InProcess, name: str) -> None:
    model, path, body, status, keys = REFUSALS[name]
    server = classifier if model == "classifier" else reranker
    response = await server.client.post(path, json=body)
    assert (response.status_code, set(response.json())) == (status, keys), response.text
    if keys == DOCUMENT:
        assert response.json()["error"] == response.json()["message"]


async def test_from_vllm(classifier: InProcess, reranker: InProcess) -> None:
    answer = await post(classifier, "/classify", input="so", padding=True, cache_salt="x", mm_processor_kwargs={})
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert set(answer["data"][0]) == {"index", "label", "probs", "num_classes"}
    everything = await post(reranker, "/v1/rerank", **RERANK, top_n=0)
    assert set(everything) == {"id", "model", "usage", "results"}
    assert {frozenset(item) for item in everything["results"]} == {frozenset({"index", "document", "relevance_score"})}
    assert len(everything["results"]) == 2
    instructed = await reranker.client.post("/v1/rerank", json=RERANK | {"instruction": "x"})
    assert instructed.status_code == 400, "this model's pairs have no place for one"


async def test_from_sglang(classifier: InProcess, reranker: InProcess) -> None:
    body = {"input": "so", "user": None, "rid": "mine", "priority": None}
    assert (await post(classifier, "/v1/classify", **body))["id"] == "classify-mine"
    native = await post(classifier, "/classify", text="so")
    assert native["meta_info"]["weight_version"] == "default"
    embedded = await post(classifier, "/v1/embeddings", input="so")
    assert embedded["data"][0]["embedding"] == pytest.approx(native["embedding"])
    assert (await post(reranker, "/v1/rerank", **RERANK))["results"]
    for path in ("/get_model_info", "/get_server_info", "/get_load", "/health_generate"):
        assert (await classifier.client.get(path)).status_code == 200


async def test_from_tei(classifier: InProcess, tmp_path: Path) -> None:
    pair = await post(classifier, "/predict", inputs=["so", "great"])
    assert [set(item) for item in pair] == [{"score", "label"}] * 2
    batch = await post(classifier, "/", inputs=["so", "great"])
    assert [len(row) for row in batch] == [2, 2], "two texts"
    assert [len(row) for row in await post(classifier, "/", inputs="so")] == [2], "a list in a list"
    response = await classifier.client.post("/predict", json={"inputs": "so"})
    times = {f"x-{stage}-time" for stage in ("total", "tokenization", "queue", "inference")}
    assert {"x-compute-tokens", "x-compute-characters", *times} <= set(response.headers)
    save_bert(tmp_path)
    async with in_process(tmp_path, engine={"truncate_prompt_tokens": -1}) as cutting:
        assert await post(cutting, "/predict", inputs=LONG * 2, truncate=False)


async def test_from_infinity(classifier: InProcess, reranker: InProcess) -> None:
    (item,) = (await post(classifier, "/classify", input=["so"]))["data"]
    (row,) = await post(classifier, "/", inputs=["so"])
    assert {one["label"]: one["score"] for one in row} == pytest.approx(
        {f"LABEL_{index}": prob for index, prob in enumerate(item["probs"])}
    )
    for model in ({}, {"model": ""}):
        plain = await post(reranker, "/rerank", **RERANK, **model, return_documents=False)
        assert {frozenset(one) for one in plain["results"]} == {frozenset({"index", "relevance_score"})}
    assert not {"object", "created"} & set(plain)
    raw = await post(reranker, "/rerank", **RERANK, raw_scores=True)
    assert all(not 0 <= one["relevance_score"] <= 1 for one in raw["results"]), "this model's logits are negative"
    assert (await post(classifier, "/classify", input=["so"], raw_scores=True))["data"][0]["probs"] != item["probs"]
    assert (await classifier.client.get("/models")).status_code == 404
    assert (await classifier.client.get("/v1/models")).status_code == 200


async def test_the_flags_exist() -> None:
    """Those of the table of command lines, in its last column."""
    page = (REPOSITORY / "docs" / "clients.md").read_text("utf-8")
    rows = page.partition("## Command lines")[2].partition("\n## ")[0].split("\n\n")[1].splitlines()[2:]
    named = {flag for row in rows for flag in re.findall(r"--[a-z][a-z-]+", row.rpartition(" | ")[2])}
    command: Any = get_command(app)
    existing = {option for parameter in command.commands["serve"].params for option in parameter.opts}
    assert len(named) > 10
    assert named <= existing

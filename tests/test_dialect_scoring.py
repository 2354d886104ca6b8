"""vLLM's /score and /pooling, SGLang's /v1/score: golden files, scores as transformers has them, any JSON."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.dialects import items
from assay.dialects.scoring import ErrorResponse, PoolingResponse, ScoreResponse
from tests.e2e.process import InProcess, in_process
from tests.golden_files import USUAL, check, load
from tests.tiny import bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("scoring")
FITS = USUAL | {
    "<score-id>": lambda value: re.fullmatch("score-[0-9a-f]{32}", value),
    "<pooling-id>": lambda value: re.fullmatch("pooling-[0-9a-f]{32}", value),
    "<time>": lambda value: type(value) is int and abs(value - time.time()) < 600,
    "<logit>": lambda value: type(value) is float and not 0 <= value <= 1,
}
QUERIES = ["the coffee", "so great"]
DOCUMENTS = ["was great", "the update broke everything"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with one logit, negative for these texts, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("one")
    return folder, save_bert(folder, seed=2, num_labels=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(reference: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "golden", "max_request_inputs": 4}
    async with in_process(reference[0], engine={"max_model_len": 16}, **limits) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def classifier(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[InProcess, Path, Any]]:
    """A server of three labels."""
    folder = tmp_path_factory.mktemp("three")
    model = save_bert(folder)
    async with in_process(folder, served_model_name="three") as running:
        yield running, folder, model


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)
async def test_golden(server: InProcess, golden: Any) -> None:
    await check(server.client, golden, FITS)


def logits(folder: Path, model: Any, text: str, pair: str | None = None) -> torch.Tensor:
    encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, pair)
    return bert_logits(model, encoding.ids, encoding.type_ids)


async def scores(server: InProcess, **body: Any) -> list[float]:
    response = await server.client.post("/v1/score", json=body)
    assert response.status_code == 200, response.text
    assert [item["index"] for item in response.json()["data"]] == list(range(len(response.json()["data"])))
    return [item["score"] for item in response.json()["data"]]


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        (QUERIES[0], DOCUMENTS[0], [(0, 0)]),
        (QUERIES[0], DOCUMENTS, [(0, 0), (0, 1)]),
        (QUERIES, DOCUMENTS, [(0, 0), (1, 1)]),
    ],
    ids=["1:1", "1:N", "N:N"],
)
async def test_scores_are_those_of_transformers(
    server: InProcess, reference: tuple[Path, Any], first: Any, second: Any, pairs: list[tuple[int, int]]
) -> None:
    expected = [logits(*reference, QUERIES[q], DOCUMENTS[d])[0] for q, d in pairs]
    raw = await scores(server, text_1=first, text_2=second, use_activation=False)
    assert raw == pytest.approx([value.item() for value in expected], abs=1e-4)
    usual = await scores(server, queries=first, documents=second)
    assert usual == pytest.approx([value.sigmoid().item() for value in expected], abs=1e-5)


async def test_query_and_document_are_not_exchanged(server: InProcess) -> None:
    body = {"text_1": QUERIES[0], "text_2": DOCUMENTS[1]}
    assert await scores(server, **body) != await scores(server, text_1=DOCUMENTS[1], text_2=QUERIES[0])


async def test_items_are_joined_with_the_query(classifier: tuple[InProcess, Path, Any]) -> None:
    running, folder, model = classifier
    body = {"query": "the ", "items": ["coffee ", "update "]}

    async def answer(**more: Any) -> Any:
        return (await running.client.post("/v1/score", json=body | more)).json()["scores"]

    joined = [logits(folder, model, "the coffee"), logits(folder, model, "the update")]
    first = [logits(folder, model, "coffee the"), logits(folder, model, "update the")]
    assert await answer() == [pytest.approx(row.tolist(), abs=1e-4) for row in joined]
    assert await answer(item_first=True) == [pytest.approx(row.tolist(), abs=1e-4) for row in first]
    assert await answer(apply_softmax=True) == [pytest.approx(row.softmax(-1).tolist(), abs=1e-5) for row in joined]


async def test_several_labels_have_no_score(classifier: tuple[InProcess, Path, Any]) -> None:
    response = await classifier[0].client.post("/score", json={"text_1": "a", "text_2": "b"})
    assert response.status_code == 400
    message = (
        "The model `three` has 3 labels; a score needs a model with one. "
        "/v1/classify gives the probability of each label."
    )
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": 400}
    assert response.json() == {"error": error}


async def test_pooling_gives_every_label(classifier: tuple[InProcess, Path, Any]) -> None:
    running, folder, model = classifier
    raw = (await running.client.post("/pooling", json={"input": "great", "use_activation": False})).json()
    usual = (await running.client.post("/pooling", json={"input": "great"})).json()
    expected = logits(folder, model, "great")
    assert raw["data"][0]["data"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert usual["data"][0]["data"] == pytest.approx(expected.softmax(-1).tolist(), abs=1e-5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 130) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TEXTS = st.text(max_size=12) | st.lists(st.text(max_size=12), max_size=3)
IDS = st.lists(st.integers(-1, 60), max_size=3)
OPTIONS = {"truncate_prompt_tokens": st.integers(-2, 18), "use_activation": st.booleans(), "model": st.just("golden")}
SPELLING = st.sampled_from(["queries documents", "queries items", "text_1 text_2", "data_1 data_2"])
PAIRS = SPELLING.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names.split(), TEXTS), optional=OPTIONS))
ITEMS = st.fixed_dictionaries(
    {"query": TEXTS | IDS, "items": TEXTS | st.lists(IDS, max_size=3)},
    optional=OPTIONS | {"item_first": st.booleans(), "apply_softmax": st.booleans()},
)
ODD = st.dictionaries(st.sampled_from(["query", "items", "queries", "text_1", "text_2", "data_1", "priority"]), JSON)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADERS = {"Content-Type": "application/json"}


@FUZZ
@given(body=JSON | PAIRS | ITEMS | ODD)
async def test_any_score_request(server: InProcess, body: Any) -> None:
    response = await server.client.post("/v1/score", content=msgspec.json.encode(body), headers=HEADERS)
    assert response.status_code in (200, 400, 404, 413), response.text
    names = set(body) if isinstance(body, dict) else set()
    sglang = "query" in names and not names & {"queries", "documents", "text_1", "text_2", "data_1", "data_2"}
    good, bad = (items.ItemsResponse, items.ErrorResponse) if sglang else (ScoreResponse, ErrorResponse)
    answer = msgspec.json.decode(response.content, type=good if response.status_code == 200 else bad)
    if isinstance(answer, ScoreResponse) and body.get("use_activation") is not False:
        assert all(0 <= item.score <= 1 for item in answer.data)


@FUZZ
@given(body=JSON | st.fixed_dictionaries({"input": TEXTS | IDS}, optional=OPTIONS | {"task": JSON, "messages": JSON}))
async def test_any_pooling_request(server: InProcess, body: Any) -> None:
    response = await server.client.post("/pooling", content=msgspec.json.encode(body), headers=HEADERS)
    assert response.status_code in (200, 400, 404, 413), response.text
    wire: Any = PoolingResponse if response.status_code == 200 else ErrorResponse
    assert msgspec.json.decode(response.content, type=wire)

"""/rerank with `documents`: golden files, scores as transformers has them, order, any JSON, Cohere's own client."""

import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.dialects.dialect import Answer, Incoming
from assay.dialects.rerank import ErrorResponse, RerankResponse, parse, render
from assay.sequence import Prediction
from tests.e2e.process import InProcess, in_process, serving
from tests.golden_files import USUAL, check, load
from tests.tiny import bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("rerank")
FITS = USUAL | {
    "<rerank-id>": lambda value: re.fullmatch("rerank-[0-9a-f]{32}", value),
    "<logit>": lambda value: type(value) is float and not 0 <= value <= 1,
    "<index>": lambda value: value in (0, 1),
    "<document>": lambda value: value in ("was great", "so"),
}
QUERY = "the coffee"
DOCUMENTS = ["was great", "so", "the update broke everything", "loved", "new café"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with one logit, negative for these texts, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("one")
    return folder, save_bert(folder, seed=2, num_labels=1)


@pytest.fixture(scope="module")
def logits(reference: tuple[Path, Any]) -> list[float]:
    """What transformers says of the query with each of the documents."""
    tokenizer = Tokenizer.from_file(str(reference[0] / "tokenizer.json"))
    encodings = [tokenizer.encode(QUERY, document) for document in DOCUMENTS]
    return [bert_logits(reference[1], encoding.ids, encoding.type_ids).item() for encoding in encodings]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(reference: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "golden", "max_request_inputs": 4}
    async with in_process(reference[0], engine={"max_model_len": 16}, **limits) as running:
        yield running


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)
async def test_golden(server: InProcess, golden: Any) -> None:
    await check(server.client, golden, FITS)


async def results(server: InProcess, **body: Any) -> list[dict[str, Any]]:
    response = await server.client.post("/v2/rerank", json={"query": QUERY, "documents": DOCUMENTS[:4]} | body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


async def test_documents_are_sorted_by_the_scores_of_transformers(server: InProcess, logits: list[float]) -> None:
    ranked = sorted(range(4), key=lambda index: -logits[index])
    assert ranked != list(range(4)), "these documents must not come in order already"
    found = await results(server, use_activation=False)
    assert [item["index"] for item in found] == ranked
    assert [item["document"]["text"] for item in found] == [DOCUMENTS[index] for index in ranked]
    assert [item["relevance_score"] for item in found] == pytest.approx([logits[i] for i in ranked], abs=1e-4)
    assert [item["index"] for item in await results(server)] == ranked
    best = await results(server, top_n=2, return_documents=False)
    assert [item["index"] for item in best] == ranked[:2]
    assert all("document" not in item for item in best)


async def test_equal_scores_keep_the_order_of_the_documents() -> None:
    call = parse(Incoming(b'{"query": "a", "documents": ["b", "c", "d", "e"]}'))
    predictions = [Prediction("x", [score], [score], 1) for score in (0.5, 0.7, 0.5, 0.7)]
    answer = Answer(call, predictions, ("x",), "tiny", "id", 0, 0.1)
    assert [result.index for result in render(answer).results] == [1, 3, 0, 2]


async def test_several_labels_have_no_relevance(tmp_path: Path) -> None:
    save_bert(tmp_path)
    async with in_process(tmp_path, served_model_name="three") as running:
        response = await running.client.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
    message = (
        "The model `three` has 3 labels; a relevance score needs a model with one. "
        "/v1/classify gives the probability of each label."
    )
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": 400}
    assert (response.status_code, response.json()) == (400, {"error": error})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 130) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
DOCUMENT = st.text(max_size=12) | st.fixed_dictionaries({"text": st.text(max_size=12)})
OPTIONS = {
    "top_n": st.integers(-1, 5),
    "return_documents": st.booleans() | st.none(),
    "truncate_prompt_tokens": st.integers(-2, 18),
    "use_activation": st.booleans(),
}
LIKELY = st.fixed_dictionaries(
    {"query": st.text(max_size=12), "documents": st.text(max_size=12) | st.lists(DOCUMENT, max_size=5)},
    optional=OPTIONS,
)
ODD = st.dictionaries(st.sampled_from(["query", "documents", *OPTIONS]), JSON)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | LIKELY | ODD)
async def test_any_request(server: InProcess, body: Any) -> None:
    headers = {"Content-Type": "application/json"}
    response = await server.client.post("/v1/rerank", content=msgspec.json.encode(body), headers=headers)
    assert response.status_code in (200, 400, 404, 413), response.text
    wire: Any = RerankResponse if response.status_code == 200 else ErrorResponse
    answer = msgspec.json.decode(response.content, type=wire)
    if isinstance(answer, RerankResponse):
        found = [item.relevance_score for item in answer.results]
        assert found == sorted(found, reverse=True)
        assert body.get("use_activation") is False or all(0 <= score <= 1 for score in found)


@pytest.mark.slow
async def test_coheres_client(reference: tuple[Path, Any], logits: list[float]) -> None:
    """Unmodified, against a real server: the answer's attributes, and its own exceptions for our refusals."""
    cohere = pytest.importorskip("cohere")
    ranked = sorted(range(len(DOCUMENTS)), key=lambda index: -logits[index])
    with (
        serving(reference[0], "--served-model-name", "tiny") as running,
        cohere.ClientV2(api_key="any", base_url=running.url) as client,
        cohere.Client(api_key="any", base_url=running.url) as older,
    ):
        answer = client.rerank(model="tiny", query=QUERY, documents=DOCUMENTS, top_n=3)
        assert [item.index for item in answer.results] == ranked[:3]
        expected = [1 / (1 + math.exp(-logits[index])) for index in ranked[:3]]
        assert [item.relevance_score for item in answer.results] == pytest.approx(expected, abs=1e-5)
        assert answer.id.startswith("rerank-")
        documents = [{"text": text} for text in DOCUMENTS]
        answer = older.rerank(model="tiny", query=QUERY, documents=documents, return_documents=True)
        assert [item.document.text for item in answer.results] == [DOCUMENTS[index] for index in ranked]
        with pytest.raises(cohere.BadRequestError) as refused:
            client.rerank(model="tiny", query="", documents=DOCUMENTS)
        assert refused.value.body["error"]["message"] == "`query` cannot be empty"
        with pytest.raises(cohere.NotFoundError, match="does not exist"):
            client.rerank(model="nope", query=QUERY, documents=DOCUMENTS)

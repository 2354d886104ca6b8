"""Hugging Face Inference and semantic-router: golden files, whose scores they are, any JSON, real clients."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.dialects import hf_inference
from assay.dialects.dialect import Answer, Incoming
from assay.sequence import Prediction
from tests.e2e.process import InProcess, in_process, serving
from tests.golden_files import USUAL, check, load
from tests.tiny import bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("hf")
LABELS = ["bad", "fair", "good"]
FITS = USUAL | {"<label>": lambda value: value in LABELS}
PATHS = ("/", "/classify")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint's folder, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_bert(folder, id2label=dict(enumerate(LABELS)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(reference: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    async with in_process(reference[0], engine={"max_model_len": 16}, max_request_inputs=4) as running:
        yield running


def logits_of(reference: tuple[Path, Any], *texts: str) -> dict[str, float]:
    """What transformers says of a text or a pair."""
    encoding = Tokenizer.from_file(str(reference[0] / "tokenizer.json")).encode(*texts)
    return dict(zip(LABELS, bert_logits(reference[1], encoding.ids, encoding.type_ids).tolist(), strict=True))


def applied(function: str, logits: dict[str, float]) -> dict[str, float]:
    if function == "sigmoid":
        return {label: 1 / (1 + math.exp(-x)) for label, x in logits.items()}
    if function == "softmax":
        total = sum(math.exp(x) for x in logits.values())
        return {label: math.exp(x) / total for label, x in logits.items()}
    return logits


async def post(server: InProcess, path: str, **body: Any) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def by_label(row: list[dict[str, Any]]) -> dict[str, float]:
    assert all(a["score"] >= b["score"] for a, b in pairwise(row))
    return {item["label"]: item["score"] for item in row}


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    await check(server.client, GOLDEN[name], FITS)


# --- whose scores they are ---


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
async def test_functions_are_those_of_transformers(
    server: InProcess, reference: tuple[Path, Any], function: str
) -> None:
    (row,) = await post(server, "/", inputs="the coffee", parameters={"function_to_apply": function})
    assert by_label(row) == pytest.approx(applied(function, logits_of(reference, "the coffee")), abs=1e-4)


async def test_semantic_router_reads_a_whole_distribution(server: InProcess, reference: tuple[Path, Any]) -> None:
    scores = by_label(await post(server, "/classify", inputs="the coffee"))
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert scores == pytest.approx(applied("softmax", logits_of(reference, "the coffee")), abs=1e-5)


async def test_a_list_is_a_batch_and_an_object_a_pair(server: InProcess, reference: tuple[Path, Any]) -> None:
    raw = {"function_to_apply": "none"}
    batch = await post(server, "/", inputs=["the coffee", "was great"], parameters=raw)
    assert [by_label(row) for row in batch] == [
        pytest.approx(logits_of(reference, text), abs=1e-4) for text in ("the coffee", "was great")
    ]
    (pair,) = await post(server, "/", inputs={"text": "the coffee", "text_pair": "was great"}, parameters=raw)
    assert by_label(pair) == pytest.approx(logits_of(reference, "the coffee", "was great"), abs=1e-4)


async def test_max_length_cuts_unless_truncation_is_off(server: InProcess, reference: tuple[Path, Any]) -> None:
    texts = "the coffee was great so"
    for parameters, scored in (({"max_length": 4}, "the coffee"), ({"max_length": 4, "truncation": False}, texts)):
        (row,) = await post(server, "/", inputs=texts, parameters={"function_to_apply": "none"} | parameters)
        assert by_label(row) == pytest.approx(logits_of(reference, scored), abs=1e-4)


async def test_classify_belongs_to_the_key_that_is_there(server: InProcess) -> None:
    document = await post(server, "/classify", input="the coffee")
    assert document["object"] == "list"
    neither = await server.client.post("/classify", json={"texts": "great"})
    assert (neither.status_code, neither.json()["object"]) == (400, "error")


async def test_softmax_over_one_label_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, num_labels=1)
    async with in_process(tmp_path) as running:
        asked = {"inputs": "great", "parameters": {"function_to_apply": "softmax"}}
        response = await running.client.post("/", json=asked)
        assert response.status_code == 400
        assert "one label" in response.json()["error"]
        ((item,),) = await post(running, "/", inputs="great")
        assert 0 < item["score"] < 1


async def test_equal_scores_keep_their_order() -> None:
    call = hf_inference.SEMANTIC_ROUTER.parse(Incoming(b'{"inputs": "a"}'))
    scores = [0.2, 0.4, 0.2, 0.2]
    answer = Answer(call, [Prediction("b", scores, scores, 3)], ("a", "b", "c", "d"), "m", "id", 0, 0.1)
    assert [item.label for item in hf_inference.render(answer)] == ["b", "a", "c", "d"]  # type: ignore[union-attr]


# --- any JSON ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
TEXT = st.text(max_size=8) | st.sampled_from(["great", "the coffee", "great " * 30])
ITEM = TEXT | st.fixed_dictionaries({"text": TEXT}, optional={"text_pair": TEXT | st.none()})
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "function_to_apply": st.sampled_from(["none", "softmax", "sigmoid", "relu", None]) | JSON,
        "top_k": st.integers(-2, 5) | JSON,
        "truncation": st.booleans() | JSON,
        "max_length": st.integers(-3, 30) | JSON,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(PATHS),
    inputs=ITEM | st.lists(ITEM, max_size=4) | JSON,
    others=st.fixed_dictionaries({}, optional={"parameters": PARAMETERS | st.none() | JSON, "options": JSON}),
)
async def test_any_json(server: InProcess, path: str, inputs: Any, others: dict[str, Any]) -> None:
    body = json.dumps({"inputs": inputs, **others})
    response = await server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    answer = response.json()
    if response.status_code != 200:
        assert response.status_code in (400, 413), response.text
        assert list(answer) == ["error", "error_type"]
        assert answer["error"]
        return
    bare = path == "/classify" and "parameters" not in others and not isinstance(inputs, list)
    for row in [answer] if bare else answer:
        assert 1 <= len(by_label(row)) <= 3


# --- real clients ---


def results(rows: Any) -> dict[str, float]:
    return {row.label: row.score for row in rows}


@pytest.mark.slow
async def test_inference_client(reference: tuple[Path, Any]) -> None:
    text = "the coffee"
    expected = {function: applied(function, logits_of(reference, text)) for function in ("softmax", "sigmoid", "none")}
    with serving(reference[0]) as running:
        for url in (running.url, f"{running.url}/classify"):
            await asyncio.to_thread(use_sync_client, url, text, expected)
            async with AsyncInferenceClient(url) as client:
                for function in expected:
                    rows = await client.text_classification(text, function_to_apply=function)  # type: ignore[arg-type]
                    assert results(rows) == pytest.approx(expected[function], abs=1e-4)
                with pytest.raises(HfHubHTTPError):
                    await client.text_classification("")
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as plain:
            bare = await plain.post("/classify", json={"inputs": text})
        assert by_label(bare.json()) == pytest.approx(expected["softmax"], abs=1e-4)


def use_sync_client(url: str, text: str, expected: dict[str, dict[str, float]]) -> None:
    client = InferenceClient(url)
    rows = client.text_classification(text)
    assert results(rows) == pytest.approx(expected["softmax"], abs=1e-4)
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    (best,) = client.text_classification(text, top_k=1, function_to_apply="sigmoid")
    assert (best.label, best.score) == (rows[0].label, pytest.approx(expected["sigmoid"][rows[0].label], abs=1e-4))
    with pytest.raises(HfHubHTTPError) as refused:
        client.text_classification(" ")
    assert refused.value.response.status_code == 400
    assert "`inputs` holds a text that is empty" in str(refused.value)

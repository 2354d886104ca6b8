"""Text Embeddings Inference's dialect: golden files, whose scores they are, order, statuses, headers, any JSON."""

import json
import math
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay import __version__
from assay.dialects import tei
from assay.dialects.dialect import Answer, Call
from assay.errors import (
    AssayError,
    ClientGoneError,
    ContextLengthError,
    InternalError,
    QueueFullError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from assay.sequence import Options, Prediction, TextPrompt, Timings
from tests.e2e.process import InProcess, in_process
from tests.golden_files import USUAL, check, load
from tests.tiny import bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("tei")
LABELS = ["bad", "fair", "good"]
FITS = USUAL | {
    "<label>": lambda value: value in LABELS,
    "<index>": lambda value: value in (0, 1, 2),
    "<milliseconds>": lambda value: isinstance(value, str) and value.isdecimal() and int(value) < 60_000,
}
LIMITS = {"max_body_bytes": 2048, "max_request_inputs": 4}
TEXTS = ["the coffee was great", "was", "so loved", "new"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Checkpoints, and the same models as transformers has them."""
    root = tmp_path_factory.mktemp("models")
    configs: dict[str, dict[str, Any]] = {
        "classifier": {"id2label": dict(enumerate(LABELS))},
        "reranker": {"num_labels": 1},
        "multi_label": {"problem_type": "multi_label_classification"},
    }
    return {name: (root / name, save_bert(root / name, **config)) for name, config in configs.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def classifier(models: dict[str, tuple[Path, Any]]) -> AsyncIterator[InProcess]:
    async with in_process(models["classifier"][0], engine={"max_model_len": 16}, **LIMITS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reranker(models: dict[str, tuple[Path, Any]]) -> AsyncIterator[InProcess]:
    async with in_process(models["reranker"][0], engine={"max_model_len": 16}, **LIMITS) as running:
        yield running


def logits_of(model: tuple[Path, Any], *texts: str) -> list[float]:
    """What transformers says of a text or a pair."""
    encoding = Tokenizer.from_file(str(model[0] / "tokenizer.json")).encode(*texts)
    return bert_logits(model[1], encoding.ids, encoding.type_ids).tolist()


async def post(server: InProcess, path: str, body: Any) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def is_sorted(scores: Iterable[float]) -> bool:
    return all(a >= b for a, b in pairwise(scores))


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(classifier: InProcess, reranker: InProcess, name: str) -> None:
    server = reranker if name.startswith("rerank") else classifier
    response = await check(server.client, GOLDEN[name], FITS)
    if response.status_code == 200:
        answer = response.json()
        for row in answer if isinstance(answer[0], list) else [answer]:
            assert is_sorted(item["score"] for item in row)
            if name.startswith("predict"):
                assert sorted(item["label"] for item in row) == LABELS


# --- whose scores they are ---


def as_mapping(row: list[dict[str, Any]]) -> list[float]:
    by_label = {item["label"]: item["score"] for item in row}
    return [by_label[label] for label in LABELS]


@pytest.mark.parametrize("texts", [("the coffee",), ("the coffee", "was great"), ("was great", "the coffee")])
async def test_predict_scores_are_those_of_transformers(
    classifier: InProcess, models: dict[str, tuple[Path, Any]], texts: tuple[str, ...]
) -> None:
    logits = logits_of(models["classifier"], *texts)
    one = await post(classifier, "/predict", {"inputs": list(texts), "raw_scores": True})
    assert as_mapping(one) == pytest.approx(logits, abs=1e-4)
    batch = await post(classifier, "/predict", {"inputs": [["so"], list(texts)]})
    exps = [math.exp(logit) for logit in logits]
    assert as_mapping(batch[1]) == pytest.approx([e / sum(exps) for e in exps], abs=1e-5)


async def test_predict_of_a_multi_label_model_scores_each_label_by_itself(
    models: dict[str, tuple[Path, Any]],
) -> None:
    async with in_process(models["multi_label"][0]) as running:
        row = await post(running, "/predict", {"inputs": "the coffee"})
    expected = {
        f"LABEL_{i}": 1 / (1 + math.exp(-x)) for i, x in enumerate(logits_of(models["multi_label"], "the coffee"))
    }
    assert {item["label"]: item["score"] for item in row} == pytest.approx(expected, abs=1e-5)
    assert abs(sum(expected.values()) - 1) > 1e-3


@pytest.mark.parametrize("raw", [False, True])
async def test_ranks_are_those_of_transformers(
    reranker: InProcess, models: dict[str, tuple[Path, Any]], raw: bool
) -> None:
    ranks = await post(reranker, "/rerank", {"query": "great", "texts": TEXTS, "raw_scores": raw, "return_text": True})
    logits = [logits_of(models["reranker"], "great", text)[0] for text in TEXTS]
    scores = logits if raw else [1 / (1 + math.exp(-logit)) for logit in logits]
    assert [rank["index"] for rank in ranks] == sorted(range(4), key=lambda index: -logits[index])
    assert [rank["score"] for rank in ranks] == pytest.approx([scores[r["index"]] for r in ranks], abs=1e-4)
    assert [rank["text"] for rank in ranks] == [TEXTS[rank["index"]] for rank in ranks]


async def test_truncation_directions_keep_different_ends(
    classifier: InProcess, models: dict[str, tuple[Path, Any]]
) -> None:
    text = "great " * 14 + "coffee " * 14
    for direction, kept in (("Left", "coffee "), ("right", "great ")):
        body = {"inputs": text, "truncate": True, "truncation_direction": direction, "raw_scores": True}
        row = await post(classifier, "/predict", body)
        assert as_mapping(row) == pytest.approx(logits_of(models["classifier"], kept * 14), abs=1e-4)


async def test_a_classifier_does_not_rank(classifier: InProcess) -> None:
    response = await classifier.client.post("/rerank", json={"query": "great", "texts": ["a"]})
    assert response.status_code == 424
    assert response.json()["error_type"] == "Backend"
    assert "3 labels" in response.json()["error"]


# --- rendering ---


def answer(rows: list[list[float]], labels: tuple[str, ...], context: Any, timings: list[Timings]) -> Answer:
    predictions = [Prediction("x", row, row, 5, timing) for row, timing in zip(rows, timings, strict=True)]
    call = Call([TextPrompt("né", "ab"), TextPrompt("c")], Options(), context=context)
    return Answer(call, predictions, labels, "m", "id", 0, 1.2345)


async def test_equal_scores_keep_their_order() -> None:
    given = answer([[0.2, 0.4, 0.2, 0.2]], ("a", "b", "c", "d"), True, [Timings()])
    assert [item.label for item in tei.render_predict(given)] == ["b", "a", "c", "d"]  # type: ignore[union-attr]
    given = answer([[0.2], [0.7], [0.2]], ("a",), None, [Timings()] * 3)
    assert [rank.index for rank in tei.render_rerank(given)] == [1, 0, 2]


async def test_headers_sum_tokens_and_characters() -> None:
    assert tei.headers(answer([[0.2], [0.3]], ("a",), False, [Timings(), Timings()])) == {
        "x-compute-tokens": "10",
        "x-compute-characters": "5",
        "x-total-time": "1234",
    }


async def test_info_tells_classifiers_from_rerankers() -> None:
    assert tei.model_type(("a",)) == {"reranker": tei.Model({"0": "a"}, {"a": 0})}
    assert tei.model_type(("a", "b")) == {"classifier": tei.Model({"0": "a", "1": "b"}, {"a": 0, "b": 1})}
    info = tei.Info(
        model_id="m",
        model_sha=None,
        model_dtype="float32",
        model_type=tei.model_type(("a", "b")),
        max_concurrent_requests=1,
        max_input_length=512,
        max_batch_tokens=2048,
        max_client_batch_size=32,
        tokenization_workers=2,
    )
    assert info.version == __version__


# --- errors ---


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (RequestError("wrong"), 422, "Validation"),
        (ContextLengthError("long"), 413, "Validation"),
        (TooLargeError("large"), 413, "Validation"),
        (UnauthorizedError("who"), 401, "Validation"),
        (QueueFullError("full"), 429, "Overloaded"),
        (InternalError("bug"), 424, "Backend"),
        (UnavailableError("loading"), 503, "Unhealthy"),
        (ClientGoneError("gone"), 499, "Validation"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, AssayError) else None,
)
async def test_statuses(error: AssayError, status: int, error_type: str) -> None:
    for dialect in (tei.PREDICT, tei.RERANK):
        assert dialect.status(error) == status
        assert dialect.render_error(error) == tei.ErrorResponse(error.message, error_type)  # type: ignore[arg-type]


async def test_a_bug_is_a_424(classifier: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(classifier.service.engine, "classify", broken)
    response = await classifier.client.post("/predict", json={"inputs": "a"})
    assert (response.status_code, response.json()["error_type"]) == (424, "Backend")
    assert "secret" not in response.text


# --- any JSON ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
TEXT = st.text(max_size=8) | st.sampled_from(["great", "the coffee", "great " * 30])
INPUTS = TEXT | st.lists(TEXT, max_size=3) | st.lists(st.lists(TEXT, max_size=3), max_size=3)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "inputs": INPUTS | JSON,
        "query": TEXT | JSON,
        "texts": st.lists(TEXT, max_size=3) | JSON,
        "truncate": st.booleans() | JSON,
        "truncation_direction": st.sampled_from(["Left", "Right", "left", "up"]) | JSON,
        "raw_scores": st.booleans() | JSON,
        "return_text": st.booleans() | JSON,
    },
)


def assert_answered(response: httpx.Response, field: str) -> None:
    body = response.json()
    if response.status_code != 200:
        assert response.status_code in (413, 422), response.text
        assert list(body) == ["error", "error_type"]
        assert body["error_type"] == "Validation"
        assert body["error"]
        return
    for row in body if isinstance(body[0], list) else [body]:
        assert is_sorted(item["score"] for item in row)
        assert all(field in item for item in row)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | JSON)
async def test_any_json_to_predict(classifier: InProcess, body: Any) -> None:
    response = await classifier.client.post(
        "/predict", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert_answered(response, "label")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
async def test_any_json_to_rerank(reranker: InProcess, body: dict[str, Any]) -> None:
    body = {"texts": [], **body}  # without it, the request is in another dialect
    response = await reranker.client.post(
        "/rerank", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert_answered(response, "index")

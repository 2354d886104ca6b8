"""OpenAI's moderations: golden files, what is flagged, OpenAI's own client, and any JSON."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.dialects.dialect import Answer, Call
from assay.dialects.flags import flagged_labels, thresholds_of
from assay.sequence import Options, Prediction
from tests.e2e.process import InProcess, in_process
from tests.golden_files import USUAL, check, load
from tests.tiny import WORDS, bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("moderation")
LABELS = ("toxic", "insult", "Not-Toxic")
FITS = USUAL | {
    "<bool>": lambda value: type(value) is bool,
    "<id>": lambda value: value.startswith("modr-") and len(value) == 37,
    "<param>": lambda value: value is None or isinstance(value, str),
}
TEXTS = [*WORDS[:12], "Loved the new café—coffee was great."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A multi-label checkpoint with a safe label in it, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("tiny")
    config = {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"}
    return folder, save_bert(folder, **config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(model: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "golden", "max_body_bytes": 4096, "max_request_inputs": 20}
    async with in_process(model[0], engine={"max_model_len": 32}, **limits) as running:
        yield running


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    await check(server.client, GOLDEN[name], FITS)


async def test_scores_are_those_of_transformers_and_flag_at_one_half(
    server: InProcess, model: tuple[Path, Any]
) -> None:
    tokenizer = Tokenizer.from_file(str(model[0] / "tokenizer.json"))
    results = (await server.client.post("/v1/moderations", json={"input": TEXTS})).json()["results"]
    assert len(results) == len(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        expected = bert_logits(model[1], tokenizer.encode(text).ids).sigmoid().tolist()
        assert result["category_scores"] == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)
        toxic, insult, _ = (result["category_scores"][label] >= 0.5 for label in LABELS)
        assert result["categories"] == {"toxic": toxic, "insult": insult, "Not-Toxic": False}
        assert result["flagged"] == (toxic or insult)
    assert {result["flagged"] for result in results} == {True, False}
    assert any(result["category_scores"]["Not-Toxic"] >= 0.5 for result in results)


# --- the rule ---


@pytest.mark.parametrize(
    ("labels", "probs", "flags"),
    [
        (("SAFE", "INJECTION"), [0.4, 0.6], [False, True]),
        (("SAFE", "INJECTION"), [0.9, 0.1], [False, False]),
        (("toxic", "non-toxic"), [0.5, 0.5], [True, False]),
        (("Not_Hate", "hate"), [1.0, 0.0], [False, False]),
        (("LABEL_0", "LABEL_1"), [0.9, 0.1], [False, False]),
        (("LABEL_0", "LABEL_1"), [0.1, 0.9], [False, True]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0.9, 0.9, 0.1], [True, True, False]),
        (("LABEL_0",), [0.9], [True]),
        (("BENIGN", "INJECTION", "JAILBREAK"), [0.2, 0.4, 0.4], [False, False, False]),
        (("positive", "negative"), [0.7, 0.3], [True, False]),
    ],
)
async def test_what_is_flagged(labels: tuple[str, ...], probs: list[float], flags: list[bool]) -> None:
    assert flagged_labels(Prediction("", probs, [0.0] * len(probs), 3), labels, [0.5] * len(probs)) == flags


async def test_the_caller_moves_the_rule() -> None:
    prediction = Prediction("", [0.3, 0.7], [0.0, 1.0], 3)
    assert flagged_labels(prediction, ("a", "b"), (0.3, 0.3)) == [True, True]
    assert flagged_labels(prediction, ("a", "b"), (0.3, 0.7001)) == [True, False]
    assert flagged_labels(prediction, ("a", "b"), (0.5, 0.5), safe_labels=["b"]) == [False, False]
    assert flagged_labels(prediction, ("a", "b"), (0.0, 0.0), safe_labels=[0]) == [False, True]


@pytest.mark.parametrize(
    ("calibrated", "asked", "thresholds"),
    [
        (None, None, (0.5, 0.5)),
        (None, 0.0, (0.0, 0.0)),
        ((0.2, 0.9), None, (0.2, 0.9)),
        ((0.2, 0.9), 0.0, (0.0, 0.0)),
    ],
)
async def test_the_callers_threshold_then_the_calibrations_then_one_half(
    calibrated: tuple[float, ...] | None, asked: float | None, thresholds: tuple[float, ...]
) -> None:
    answer = Answer(Call([], Options()), [], ("a", "b"), "m", "id", 0, 0.1, calibrated)
    assert thresholds_of(answer, asked) == thresholds


async def test_raw_scores_are_not_flagged_but_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, num_labels=1, problem_type="regression", num_hidden_layers=1)
    async with in_process(tmp_path) as running:
        response = await running.client.post("/v1/moderations", json={"input": "great"})
    assert response.status_code == 400
    assert "not probabilities" in response.json()["error"]["message"]


# --- OpenAI's client, unmodified ---


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: InProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(server.app)
    http_client = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
    async with openai.AsyncOpenAI(
        api_key="none", base_url="http://localhost/v1", http_client=http_client, max_retries=0
    ) as client:
        yield client


async def test_openai_client(server: InProcess, client: openai.AsyncOpenAI) -> None:
    created = await client.moderations.create(model="omni-moderation-latest", input=TEXTS[:3])
    plain = (await server.client.post("/v1/moderations", json={"input": TEXTS[:3]})).json()
    assert created.id.startswith("modr-")
    assert created.model == "golden"
    for result, expected in zip(created.results, plain["results"], strict=True):
        assert result.flagged is expected["flagged"]
        assert result.categories.model_extra == expected["categories"]
        assert result.category_scores.model_extra == pytest.approx(expected["category_scores"], abs=1e-6)
        assert result.category_applied_input_types.model_extra == {label: ["text"] for label in LABELS}


async def test_openai_client_reads_a_refusal(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.moderations.create(input="")
    assert (caught.value.type, caught.value.code, caught.value.param) == (
        "invalid_request_error",
        "invalid_request_error",
        "input",
    )
    assert "cannot be empty" in str(caught.value)


# --- any JSON ---

PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "x"])},
    optional={"text": st.text(max_size=9) | st.none(), "image_url": st.none() | st.just({"url": "x"})},
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
INPUTS = SCALARS | PARTS | st.lists(SCALARS | PARTS, max_size=5) | st.lists(st.text(max_size=10), max_size=5)
BODIES = st.fixed_dictionaries({}, optional={"input": INPUTS, "model": SCALARS}) | INPUTS


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
async def test_any_json_gets_results_or_a_refusal(server: InProcess, body: Any) -> None:
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response = await server.client.post("/v1/moderations", content=content, headers=headers)
    answer = response.json()
    if response.status_code == 200:
        count = len(body["input"]) if isinstance(body["input"], list) else 1
        assert len(answer["results"]) == count
        for result in answer["results"]:
            assert tuple(result["categories"]) == tuple(result["category_scores"]) == LABELS
            assert all(0 <= score <= 1 for score in result["category_scores"].values())
            assert result["flagged"] is any(result["categories"].values())
    else:
        assert response.status_code == 400
        assert list(answer["error"]) == ["message", "type", "param", "code"]
        assert answer["error"]["type"] == "invalid_request_error"

"""Detector and guardrail: golden files, whose scores they are, what blocks, and any JSON."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.e2e.process import InProcess, in_process
from tests.golden_files import USUAL, check, load
from tests.tiny import WORDS, bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

DETECTOR = "/api/v1/text/contents"
GUARDRAIL = "/beta/litellm_basic_guardrail_api"
GOLDEN = {f"{folder}/{name}": golden for folder in ("detector", "guardrail") for name, golden in load(folder).items()}
FITS = USUAL | {
    "<reason>": lambda value: (
        re.fullmatch(r"INJECTION: score [01][.]\d{4} at threshold 0, in text 0 of the request[.]", value) is not None
    )
}
TEXTS = [*WORDS[:12], "Loved the new café—coffee was great."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A multi-class checkpoint that says what is safe, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_bert(folder, seed=10, num_labels=2, id2label={0: "BENIGN", 1: "INJECTION"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(model: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "golden", "max_body_bytes": 2048, "max_request_inputs": 4}
    async with in_process(model[0], engine={"max_model_len": 32}, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def injection(model: tuple[Path, Any]) -> dict[str, float]:
    """The probability of INJECTION of each text, as transformers has it."""
    tokenizer = Tokenizer.from_file(str(model[0] / "tokenizer.json"))
    scores = {text: bert_logits(model[1], tokenizer.encode(text).ids).softmax(-1)[1].item() for text in TEXTS}
    assert min(scores.values()) < 0.4
    assert max(scores.values()) > 0.6
    return scores


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    await check(server.client, GOLDEN[name], FITS)


async def post(server: InProcess, path: str, body: Any) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_detections_are_the_scores_of_transformers_at_one_half(
    server: InProcess, injection: dict[str, float]
) -> None:
    for text, score in injection.items():
        [found] = await post(server, DETECTOR, {"contents": [text]})
        assert len(found) == (score >= 0.5), "BENIGN is never a detection"
        for detection in found:
            assert detection["score"] == pytest.approx(score, abs=1e-5)
            assert text[detection["start"] : detection["end"]] == detection["text"] == text


async def test_a_guardrail_blocks_for_the_worst_of_its_texts(server: InProcess, injection: dict[str, float]) -> None:
    ranked = sorted(injection, key=lambda text: injection[text])
    lowest, second, *_, high, highest = ranked
    assert injection[high] > 0.5
    assert (await post(server, GUARDRAIL, {"texts": [lowest, second]}))["action"] == "NONE"
    answer = await post(server, GUARDRAIL, {"texts": ["", high, lowest, highest]})
    assert answer["action"] == "BLOCKED"
    score = float(answer["blocked_reason"].partition("score ")[2].split()[0])
    assert score == pytest.approx(injection[highest], abs=1e-4)
    assert "in text 3 of the request" in answer["blocked_reason"], "blank texts keep their place"
    assert highest not in answer["blocked_reason"].split(), "what the user wrote is not repeated"


async def test_a_threshold_moves_the_guardrail(server: InProcess, injection: dict[str, float]) -> None:
    text = max(injection, key=lambda text: injection[text])
    for threshold, action in ((injection[text] - 0.001, "BLOCKED"), (min(1, injection[text] + 0.001), "NONE")):
        body = {"texts": [text], "additional_provider_specific_params": {"threshold": threshold}}
        assert (await post(server, GUARDRAIL, body))["action"] == action


@pytest.mark.parametrize(("path", "field"), [(DETECTOR, "contents"), (GUARDRAIL, "texts")])
async def test_one_logit_is_a_finding_unless_it_is_raw(tmp_path: Path, path: str, field: str) -> None:
    save_bert(tmp_path, num_labels=1, num_hidden_layers=1)
    params = {"detector_params": {"threshold": 0}, "additional_provider_specific_params": {"threshold": 0}}
    async with in_process(tmp_path) as running:
        assert "LABEL_0" in json.dumps(await post(running, path, {field: ["great"], **params}))
    async with in_process(tmp_path, engine={"activation": "none"}) as running:
        response = await running.client.post(path, json={field: ["great"], **params})
        assert response.status_code in (400, 422)
        assert "not probabilities" in response.text


# --- any JSON ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
TEXT_LISTS = SCALARS | st.lists(SCALARS, max_size=5) | st.lists(st.text(max_size=10), max_size=5)
PARAMS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "threshold": st.floats(0, 1) | SCALARS,
        "safe_labels": TEXT_LISTS,
        "truncate_prompt_tokens": st.integers(-2, 40) | SCALARS,
    },
)


def bodies(texts: str, params: str) -> st.SearchStrategy[Any]:
    optional = {texts: TEXT_LISTS, params: PARAMS | SCALARS, "input_type": st.sampled_from(["request", "response", 3])}
    return st.fixed_dictionaries({}, optional=optional) | TEXT_LISTS


async def send(server: InProcess, path: str, body: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    response = await server.client.post(path, content=json.dumps(body).encode(), headers=headers)
    return response.status_code, response.json()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies("contents", "detector_params"))
async def test_any_json_gets_detections_or_a_refusal(server: InProcess, body: Any) -> None:
    status, answer = await send(server, DETECTOR, body)
    if status == 200:
        assert len(answer) == len(body["contents"])
        for text, found in zip(body["contents"], answer, strict=True):
            for detection in found:
                assert list(detection) == ["start", "end", "text", "detection", "detection_type", "score"]
                assert (detection["start"], detection["end"], detection["text"]) == (0, len(text), text)
                assert detection["detection"] == detection["detection_type"] == "INJECTION"
    else:
        assert status in (413, 422)
        assert list(answer) == ["code", "message"]
        assert answer["code"] == status


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies("texts", "additional_provider_specific_params"))
async def test_any_json_gets_a_verdict_or_a_refusal(server: InProcess, body: Any) -> None:
    status, answer = await send(server, GUARDRAIL, body)
    if status == 200:
        assert list(answer) == ["action", "blocked_reason", "texts"]
        assert answer["action"] == ("NONE" if answer["blocked_reason"] is None else "BLOCKED")
    else:
        assert status in (400, 413)
        assert list(answer) == ["detail"]

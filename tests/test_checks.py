"""What a dialect cannot make of a model is refused before the forward pass: the model has computed nothing."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

RERANK = {"query": "coffee", "documents": ["great", "new"]}
TEI_RERANK = {"query": "coffee", "texts": ["great", "new"]}
SCORE = {"text_1": "coffee", "text_2": "great"}
MODERATION = {"input": "great"}
DETECTOR = {"contents": ["great"]}
GUARDRAIL = {"texts": ["great"]}
THREE_LABELS = [
    ("/rerank", RERANK, 400, "3 labels"),
    ("/v1/rerank", RERANK, 400, "3 labels"),
    ("/invocations", RERANK, 400, "3 labels"),
    ("/rerank", TEI_RERANK, 424, "3 labels"),
    ("/v1/score", SCORE, 400, "3 labels"),
    ("/get_reward", {"query": ["great"]}, 400, "3 labels"),
    ("/v1/moderations", MODERATION, 400, "not probabilities"),
    ("/api/v1/text/contents", DETECTOR, 422, "not probabilities"),
    ("/beta/litellm_basic_guardrail_api", GUARDRAIL, 400, "not probabilities"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    """Three labels, and raw scores: a model that none of these callers can use."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    save_bert(folder, num_labels=3, problem_type="regression", num_hidden_layers=1)
    async with in_process(folder, served_model_name="tiny") as running:
        yield running


def computed(server: InProcess) -> float:
    """Sequences that the model has scored since it was loaded."""
    text = server.service.metrics.render().decode()
    return float(text.partition('assay_sequences_total{model="tiny"} ')[2].partition("\n")[0])


@pytest.mark.parametrize(("path", "body", "status", "reason"), THREE_LABELS)
async def test_the_model_is_not_asked(server: InProcess, path: str, body: Any, status: int, reason: str) -> None:
    before = computed(server)
    response = await server.client.post(path, json=body)
    assert response.status_code == status
    assert reason in response.text
    assert computed(server) == before


async def test_what_is_answered_is_counted(server: InProcess) -> None:
    before = computed(server)
    assert (await server.classify(input=["great", "new"])).status_code == 200
    assert computed(server) == before + 2


async def test_nothing_to_score_is_no_reason_to_refuse(server: InProcess) -> None:
    for path, body, answer in (
        ("/get_reward", {"query": []}, {"rewards": [], "scores": [], "extra_logs": {}}),
        ("/api/v1/text/contents", {"contents": [" "]}, [[]]),
    ):
        assert (await server.client.post(path, json=body)).json() == answer

"""OpenRLHF's dialect: golden files, whose scores they are, and any JSON."""

import json
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
from tests.tiny import bert_logits, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("reward")
TEXTS = ["Loved the new café—coffee was great.", "the coffee", "[CLS] great [SEP]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint of one logit, whose usual activation is a sigmoid, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_bert(folder, num_labels=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(model: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "golden", "max_body_bytes": 2048, "max_request_inputs": 4}
    async with in_process(model[0], engine={"max_model_len": 32}, **limits) as running:
        yield running


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    await check(server.client, GOLDEN[name], USUAL)


async def test_rewards_are_the_raw_logits_of_the_text_with_nothing_added(
    server: InProcess, model: tuple[Path, Any]
) -> None:
    tokenizer = Tokenizer.from_file(str(model[0] / "tokenizer.json"))
    expected = [bert_logits(model[1], tokenizer.encode(text, add_special_tokens=False).ids)[0].item() for text in TEXTS]
    body = (await server.client.post("/get_reward", json={"query": TEXTS})).json()
    assert body["rewards"] == body["scores"] == pytest.approx(expected, abs=1e-4)
    assert any(not 0 <= reward <= 1 for reward in body["rewards"]), "a sigmoid would look the same"


async def test_a_model_of_several_labels_gives_no_reward(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=1)
    async with in_process(tmp_path) as running:
        response = await running.client.post("/get_reward", json={"query": ["great"]})
        assert response.status_code == 400
        assert "3 labels" in response.json()["detail"]
        assert (await running.client.post("/get_reward", json={"query": []})).json()["rewards"] == []


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
QUERIES = SCALARS | st.lists(SCALARS, max_size=5) | st.lists(st.text(max_size=10), max_size=5)
BODIES = st.dictionaries(st.sampled_from(["query", "prompts", "labels", "x"]), QUERIES) | SCALARS


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
async def test_any_json_gets_rewards_or_a_refusal(server: InProcess, body: Any) -> None:
    content = json.dumps(body).encode()
    response = await server.client.post("/get_reward", content=content, headers={"Content-Type": "application/json"})
    answer = response.json()
    if response.status_code == 200:
        count = 1 if isinstance(body["query"], str) else len(body["query"])
        assert answer["extra_logs"] == {}
        assert answer["rewards"] == answer["scores"]
        assert [type(reward) for reward in answer["rewards"]] == [float] * count
    else:
        assert response.status_code in (400, 413)
        assert list(answer) == ["detail"]
        assert isinstance(answer["detail"], str)

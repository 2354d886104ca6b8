"""POST /invocations, as SageMaker sends it: any dialect's body that names itself by its keys."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

# body → the path whose answer it gets.
BODIES: list[tuple[dict[str, Any], str]] = [
    ({"input": "great"}, "/v1/classify"),
    ({"text": "great"}, "/classify"),
    ({"input_ids": [5, 6]}, "/classify"),
    ({"inputs": "great"}, "/"),
    ({"text_1": "the coffee", "text_2": ["was great", "so"]}, "/v1/score"),
    ({"queries": "the coffee", "documents": ["was great"]}, "/v1/score"),
    ({"queries": "the coffee", "items": ["was great"]}, "/v1/score"),
    ({"query": "the coffee", "items": ["was great"]}, "/v1/score"),
    ({"query": "the coffee", "documents": ["was great", "so"]}, "/rerank"),
    ({"query": "the coffee", "texts": ["was great", "so"]}, "/rerank"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    folder = tmp_path_factory.mktemp("one")
    save_bert(folder, num_labels=1)
    async with in_process(folder, served_model_name="tiny") as running:
        yield running


def settled(value: Any) -> Any:
    """Without what differs between two equal requests: ids, times, the last bits of scores."""
    if isinstance(value, dict):
        dropped = ("id", "created", "meta_info")
        return {key: settled(item) for key, item in value.items() if key not in dropped}
    if isinstance(value, list):
        return [settled(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


@pytest.mark.parametrize(("body", "path"), BODIES, ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
async def test_the_body_chooses(server: InProcess, body: dict[str, Any], path: str) -> None:
    there = await server.client.post(path, json=body)
    here = await server.client.post("/invocations", json=body)
    assert there.status_code == here.status_code == 200, here.text
    assert settled(here.json()) == settled(there.json())


@pytest.mark.parametrize("body", [{}, {"something": "else"}, []])
async def test_a_body_that_names_nothing_gets_the_documents_error(server: InProcess, body: Any) -> None:
    response = await server.client.post("/invocations", json=body)
    assert response.status_code == 400
    assert response.json()["code"] == 400

"""KServe's two protocols: golden files, whose scores they are, names with slashes, and any JSON."""

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

GOLDEN = load("kserve")
LABELS = ["bad", "fair", "good"]
FITS = USUAL | {
    "<label>": lambda value: value in LABELS,
    "<hex>": lambda value: len(value) == 32 and int(value, 16) >= 0,
}
V1 = "/v1/models/assay/golden:predict"
V2 = "/v2/models/assay/golden/infer"
TEXTS = ["Loved the new café—coffee was great.", "the coffee", "was"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_bert(folder, id2label=dict(enumerate(LABELS)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(model: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    limits = {"served_model_name": "assay/golden", "max_body_bytes": 2048, "max_request_inputs": 4}
    async with in_process(model[0], engine={"max_model_len": 32}, **limits) as running:
        yield running


def logits_of(model: tuple[Path, Any], *texts: str) -> Any:
    encoding = Tokenizer.from_file(str(model[0] / "tokenizer.json")).encode(*texts)
    return bert_logits(model[1], encoding.ids, encoding.type_ids)


def tensor(shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": shape, "datatype": "BYTES", "data": data}]}


async def outputs(server: InProcess, body: Any) -> dict[str, list[Any]]:
    response = await server.client.post(V2, json=body)
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    await check(server.client, GOLDEN[name], FITS)


async def test_scores_are_those_of_transformers(server: InProcess, model: tuple[Path, Any]) -> None:
    logits = [logits_of(model, text) for text in TEXTS]
    predictions = (await server.client.post(V1, json={"instances": TEXTS})).json()["predictions"]
    for prediction, row in zip(predictions, logits, strict=True):
        expected = {str(index): score for index, score in enumerate(row.softmax(-1).tolist())}
        assert prediction == pytest.approx(expected, abs=1e-5)
    found = await outputs(server, tensor([3], TEXTS))
    assert found["label"] == [LABELS[int(row.argmax())] for row in logits]
    assert found["probs"] == pytest.approx([p for row in logits for p in row.softmax(-1).tolist()], abs=1e-5)
    assert found["logits"] == pytest.approx([x for row in logits for x in row.tolist()], abs=1e-4)


async def test_pairs_are_read_together(server: InProcess, model: tuple[Path, Any]) -> None:
    pairs = [["the coffee", "was great"], ["new", "update"]]
    expected = [x for pair in pairs for x in logits_of(model, *pair).tolist()]
    for data in (pairs, [text for pair in pairs for text in pair]):
        assert (await outputs(server, tensor([2, 2], data)))["logits"] == pytest.approx(expected, abs=1e-4)
    instances = [{"text": text, "text_pair": pair} for text, pair in pairs]
    predictions = (await server.client.post(V1, json={"instances": instances})).json()["predictions"]
    assert [list(row.values()) for row in predictions] == [
        pytest.approx(logits_of(model, *pair).softmax(-1).tolist(), abs=1e-5) for pair in pairs
    ]


async def test_an_escaped_slash_is_a_slash(server: InProcess) -> None:
    path = "/v1/models/assay%2Fgolden:predict"
    assert (await server.client.post(path, json={"instances": ["great"]})).status_code == 200


async def test_a_wrong_method_is_told_in_words(server: InProcess) -> None:
    response = await server.client.get(V2)
    assert response.status_code == 405
    assert isinstance(response.json()["error"], str)


# --- any JSON ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
PAIRS = st.fixed_dictionaries({"text": st.text(max_size=9)}, optional={"text_pair": st.text(max_size=9) | SCALARS})
INSTANCES = SCALARS | st.lists(SCALARS | PAIRS, max_size=5) | st.lists(st.text(max_size=9) | PAIRS, max_size=5)
V1_BODIES = st.fixed_dictionaries({}, optional={"instances": INSTANCES, "inputs": INSTANCES}) | INSTANCES
TENSORS = st.fixed_dictionaries(
    {
        "name": st.text(max_size=5),
        "shape": st.lists(st.integers(-1, 4), max_size=3) | SCALARS,
        "datatype": st.sampled_from(["BYTES", "BYTES", "FP32"]),
        "data": st.lists(st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=3), max_size=5) | SCALARS,
    }
)
V2_BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | SCALARS},
    optional={"id": SCALARS, "outputs": st.lists(st.fixed_dictionaries({"name": st.just("probs") | SCALARS}))},
)


async def send(server: InProcess, path: str, body: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    response = await server.client.post(path, content=json.dumps(body).encode(), headers=headers)
    if response.status_code != 200:
        assert response.status_code in (400, 413)
        assert list(response.json()) == ["error"]
        assert isinstance(response.json()["error"], str)
    return response.status_code, response.json()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=V1_BODIES)
async def test_any_v1_body_gets_predictions_or_a_refusal(server: InProcess, body: Any) -> None:
    status, answer = await send(server, V1, body)
    if status == 200:
        assert len(answer["predictions"]) == len(body.get("instances") or body["inputs"])
        for prediction in answer["predictions"]:
            assert sum(prediction.values()) == pytest.approx(1, abs=1e-5)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=V2_BODIES)
async def test_any_v2_body_gets_outputs_or_a_refusal(server: InProcess, body: Any) -> None:
    status, answer = await send(server, V2, body)
    if status == 200:
        assert answer["model_name"] == "assay/golden"
        for output in answer["outputs"]:
            rows, columns = [*output["shape"], 1][:2]
            assert rows == body["inputs"][0]["shape"][0]
            assert len(output["data"]) == rows * columns

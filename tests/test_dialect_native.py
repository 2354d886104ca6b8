"""SGLang's native /classify and /v1/embeddings: golden files, raw logits as transformers has them, any JSON."""

import base64
import re
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.dialects.native import EmbeddingsError, EmbeddingsResponse, NativeError, NativeItem
from tests.e2e.process import InProcess, in_process
from tests.golden_files import USUAL, check, load
from tests.tiny import bert_logits, bert_vocab, save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("native")
LABELS = ["bad", "fair", "good"]


def is_logits(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and not is_probs(value)


def is_probs(value: Any) -> bool:
    return len(value) == 3 and all(type(x) is float for x in value) and abs(sum(value) - 1) < 1e-5


FITS = USUAL | {
    "<id>": lambda value: re.fullmatch("[0-9a-f]{32}", value),
    "<id>_0": lambda value: re.fullmatch("[0-9a-f]{32}_0", value),
    "<id>_1": lambda value: re.fullmatch("[0-9a-f]{32}_1", value),
    "<classify-id>": lambda value: re.fullmatch("classify-[0-9a-f]{32}", value),
    "<time>": lambda value: type(value) is int and abs(value - time.time()) < 600,
    "<seconds>": lambda value: type(value) is float and 0 < value < 60,
    "<logits>": is_logits,
    "<probs>": is_probs,
    "<base64>": lambda value: len(base64.b64decode(value)) == 12,
    "<label>": lambda value: value in LABELS,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint's folder, and the same model as transformers has it."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_bert(folder, id2label=dict(enumerate(LABELS)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(reference: tuple[Path, Any]) -> AsyncIterator[InProcess]:
    async with in_process(reference[0], engine={"max_model_len": 16}, served_model_name="golden") as running:
        yield running


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)
async def test_golden(server: InProcess, golden: Any) -> None:
    await check(server.client, golden, FITS)


def logits(reference: tuple[Path, Any], text: str, pair: str | None = None) -> Any:
    folder, model = reference
    encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, pair)
    return pytest.approx(bert_logits(model, encoding.ids, encoding.type_ids).tolist(), abs=1e-4)


async def test_embeddings_are_the_logits_of_transformers(server: InProcess, reference: tuple[Path, Any]) -> None:
    body: dict[str, Any] = {"text": ["great", "the coffee was new", ["the coffee", "was great"]]}
    items = (await server.client.put("/classify", json=body)).json()
    assert [item["embedding"] for item in items] == [
        logits(reference, "great"),
        logits(reference, "the coffee was new"),
        logits(reference, "the coffee", "was great"),
    ]
    single = (await server.client.post("/classify", json={"text": "great"})).json()
    assert single["embedding"] == logits(reference, "great")


async def test_verl_reads_the_last_number(server: InProcess, reference: tuple[Path, Any]) -> None:
    """The request and the reading of its SGLang mode."""
    ids = Tokenizer.from_file(str(reference[0] / "tokenizer.json")).encode("so great").ids
    response = await server.client.post("/v1/embeddings", json={"model": "golden", "input": ids})
    assert response.json()["data"][-1]["embedding"][-1] == pytest.approx(
        logits(reference, "so great").expected[-1], abs=1e-5
    )


async def test_base64_holds_the_same_numbers(server: InProcess, reference: tuple[Path, Any]) -> None:
    body = {"input": ["so", "great"], "encoding_format": "base64"}
    data = (await server.client.post("/v1/embeddings", json=body)).json()["data"]
    decoded = [list(struct.unpack("<3f", base64.b64decode(item["embedding"]))) for item in data]
    assert decoded == [logits(reference, "so"), logits(reference, "great")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, len(bert_vocab()) + 3) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
IDS = st.lists(st.integers(-1, len(bert_vocab())), max_size=4)
TEXTS = st.text(max_size=12)
LIKELY = {"rid": TEXTS | st.lists(TEXTS, max_size=2), "truncate_prompt_tokens": st.integers(-2, 18)}
NATIVE = st.fixed_dictionaries(
    {"text": TEXTS | st.lists(TEXTS | st.lists(TEXTS, max_size=3), max_size=3)}, optional=LIKELY
)
NATIVE |= st.fixed_dictionaries({"input_ids": IDS | st.lists(IDS, max_size=3)}, optional=LIKELY)
NATIVE |= st.fixed_dictionaries({"text": JSON}, optional={"input_ids": JSON, "rid": JSON, "model": JSON})
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(body=NATIVE)
async def test_any_native_request(server: InProcess, body: Any) -> None:
    response = await server.client.post("/classify", content=msgspec.json.encode(body), headers=JSON_HEADER)
    assert response.status_code in (200, 400, 404), response.text
    wire: Any = NativeItem | list[NativeItem] if response.status_code == 200 else NativeError
    answer = msgspec.json.decode(response.content, type=wire)
    for item in answer if isinstance(answer, list) else [answer] * (response.status_code == 200):
        assert len(item.embedding) == 3
        assert 1 <= item.meta_info.prompt_tokens <= 16


@FUZZ
@given(body=JSON | st.fixed_dictionaries({"input": TEXTS | IDS | JSON}, optional={"encoding_format": JSON}))
async def test_any_embeddings_request(server: InProcess, body: Any) -> None:
    response = await server.client.post("/v1/embeddings", content=msgspec.json.encode(body), headers=JSON_HEADER)
    assert response.status_code in (200, 400, 404), response.text
    wire: Any = EmbeddingsResponse if response.status_code == 200 else EmbeddingsError
    assert msgspec.json.decode(response.content, type=wire)


JSON_HEADER = {"Content-Type": "application/json"}

"""What a server says of itself: the worker's side of a gateway's contract."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from assay import __version__
from assay.sequence import Sequence
from tests.e2e.process import InProcess, in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"})
    async with in_process(folder, served_model_name="tiny") as running:
        yield running


async def get(server: InProcess, path: str) -> object:
    response = await server.client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/health_generate"])
async def test_it_lives(server: InProcess, path: str) -> None:
    assert await get(server, path) == {"status": "ok"}


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
async def test_model_info(server: InProcess, path: str) -> None:
    info = await get(server, path)
    assert isinstance(info, dict)
    folder = server.service.default.config.model
    assert info == {
        "model_path": folder,
        "tokenizer_path": folder,
        "served_model_name": "tiny",
        "is_generation": False,
        "weight_version": "default",
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "max_model_len": 128,
        "id2label": {"0": "bad", "1": "fair", "2": "good"},
    }


async def test_info_is_what_teis_clients_read(server: InProcess) -> None:
    info = await get(server, "/info")
    assert isinstance(info, dict)
    assert info["model_id"] == "tiny"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert info["model_type"]["classifier"]["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    assert (info["model_dtype"], info["max_input_length"], info["max_batch_tokens"]) == ("float32", 128, 2048)
    assert info["version"] == __version__


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_server_info(server: InProcess, path: str) -> None:
    info = await get(server, path)
    assert isinstance(info, dict)
    assert (info["served_model_name"], info["dp_size"], info["version"]) == ("tiny", 1, __version__)
    assert info["max_batch_tokens"] == 2048


async def test_load_counts_what_waits(server: InProcess) -> None:
    assert await get(server, "/get_load") == [{"num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0, "dp_rank": 0}]
    assert await get(server, "/load") == {"server_load": 0}
    idle = {"dp_rank": 0, "num_running_reqs": 0, "num_waiting_reqs": 0, "token_usage": 0.0}
    assert await get(server, "/v1/loads") == {"loads": [idle]}
    engine = server.service.engine
    assert engine is not None
    engine._scheduler.add([Sequence([5] * 1024)])  # the runner sleeps, since nobody told it
    assert await get(server, "/get_load") == [{"num_reqs": 0, "num_waiting_reqs": 1, "num_tokens": 1024, "dp_rank": 0}]
    assert await get(server, "/v1/loads") == {"loads": [idle | {"num_waiting_reqs": 1, "token_usage": 1024 / 1048576}]}
    engine._scheduler.drain()


async def test_a_dead_engine_is_said_by_health_and_not_by_the_rest(server: InProcess) -> None:
    engine = server.service.engine
    assert engine is not None
    engine.failure = RuntimeError("gone")
    try:
        for path in ("/health", "/ready", "/ping", "/health_generate"):
            assert (await server.client.get(path)).status_code == 503
        assert (await server.client.get("/v1/models")).status_code == 200
    finally:
        engine.failure = None

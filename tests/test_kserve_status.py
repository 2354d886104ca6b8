"""What KServe's clients ask of a server and its models: golden files, and what is said of one that takes no work."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest
import pytest_asyncio

from assay import __version__
from tests.e2e.process import InProcess, in_process
from tests.golden_files import USUAL, check, load
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = load("kserve_status")
LABELS = ["bad", "fair", "good"]
FITS = USUAL | {
    "<version>": lambda value: value == __version__,
    "<label>": lambda value: value in LABELS,
    "<created>": lambda value: type(value) is int,
    "<folder>": lambda value: Path(value).is_dir(),
}
MODEL = "/v2/models/assay/golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, num_hidden_layers=1, id2label=dict(enumerate(LABELS)))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(folder: Path) -> AsyncIterator[InProcess]:
    async with in_process(folder, engine={"max_model_len": 32}, served_model_name="assay/golden") as running:
        yield running


@pytest.mark.parametrize("name", GOLDEN)
async def test_golden(server: InProcess, name: str) -> None:
    await check(server.client, GOLDEN[name], FITS)


async def test_metadata_says_what_inference_reads_and_writes(server: InProcess) -> None:
    metadata = (await server.client.get(MODEL)).json()
    [tensor] = metadata["inputs"]
    texts = ["the coffee", "was great"]
    body = {"inputs": [{**tensor, "shape": [len(texts) if n == -1 else n for n in tensor["shape"]], "data": texts}]}
    outputs = (await server.client.post(f"{MODEL}/infer", json=body)).json()["outputs"]
    described = [{**output, "shape": [2 if n == -1 else n for n in output["shape"]]} for output in metadata["outputs"]]
    assert [{key: output[key] for key in ("name", "datatype", "shape")} for output in outputs] == described


async def statuses(server: InProcess) -> dict[str, tuple[int, object]]:
    """HTTP status, and the one word that matters, of each probe."""
    found = {}
    for path, key in (
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
        (f"{MODEL}/ready", "ready"),
        ("/v1/models/assay/golden", "ready"),
    ):
        response = await server.client.get(path)
        found[path] = (response.status_code, response.json()[key])
    return found


def expected(live: bool, ready: bool) -> list[tuple[int, bool]]:
    return [(200 if yes else 503, yes) for yes in (live, ready, ready, ready)]


async def test_while_it_loads_it_is_live_and_not_ready(folder: Path) -> None:
    async with in_process(folder, wait=False, served_model_name="assay/golden") as running:
        running.service.default.engine = None  # it was not awaited, so nothing has loaded yet
        assert list((await statuses(running)).values()) == expected(live=True, ready=False)
        metadata = await running.client.get(MODEL)
        assert metadata.status_code == 503
        assert list(metadata.json()) == ["error"]


async def test_while_it_drains_it_is_live_and_not_ready(folder: Path) -> None:
    async with in_process(folder, served_model_name="assay/golden") as running:
        assert list((await statuses(running)).values()) == expected(live=True, ready=True)
        await running.service.drain()
        assert list((await statuses(running)).values()) == expected(live=True, ready=False)


async def test_a_dead_engine_is_neither(folder: Path) -> None:
    async with in_process(folder, served_model_name="assay/golden") as running:
        assert running.service.engine is not None
        running.service.engine.failure = RuntimeError("gone")
        assert list((await statuses(running)).values()) == expected(live=False, ready=False)
        running.service.engine.failure = None


async def test_openais_client_reads_the_card(server: InProcess) -> None:
    http_client = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://localhost")
    async with openai.AsyncOpenAI(
        api_key="none", base_url="http://localhost/v1", http_client=http_client, max_retries=0
    ) as client:
        assert (await client.models.retrieve("assay/golden")).id == "assay/golden"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_paths_of_other_callers_keep_their_shapes(server: InProcess) -> None:
    """A wrong method on a path with a name in it, and unknown paths."""
    for method, path, keys in (
        ("GET", "/v1/models/assay/golden/get_reward", ["detail"]),
        ("GET", "/predict", ["error", "error_type"]),
        ("DELETE", "/v1/moderations", ["error"]),
        ("GET", "/v2/rerank", ["error"]),
        ("GET", "/v2/models/assay/golden/versions/1/infer", ["error"]),
    ):
        response = await server.client.request(method, path)
        assert (response.status_code, list(response.json())) == (405, keys), path
    unknown = await server.client.post("/v3/classify")
    assert (unknown.status_code, unknown.json()["code"]) == (404, 404)

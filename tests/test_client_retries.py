"""What clients do with a server that is full (429), overloaded or loading (503): which try again, and what they raise.

The application and its answers are real; only the moment of a refusal is chosen, by an engine that refuses on demand.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cohere
import openai
import pytest
import uvicorn
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from assay.config import EngineConfig, ServerConfig
from assay.engine.engine import Engine
from assay.errors import AssayError, OverloadedError, QueueFullError, UnavailableError
from assay.sequence import Prediction
from assay.server.app import build_app
from assay.server.service import Service
from tests.e2e.foreign import ClientError, Foreign, foreign
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

FULL = QueueFullError("The queue is full (64 tokens wait); try again later.")
OVERLOADED = OverloadedError("The queue is full (64 tokens wait); try again later.")
DRAINING = UnavailableError("The server is draining and takes no new requests.")


class Refusing(Engine):
    """Refuses with the errors that are left in `refusals`, one a call, then answers. calls: how often it was asked."""

    refusals: list[AssayError]
    calls: int

    async def classify(self, *args: Any, **kwargs: Any) -> list[Prediction]:
        self.calls += 1
        if self.refusals:
            raise self.refusals.pop()
        return await super().classify(*args, **kwargs)

    def will_refuse(self, error: AssayError, times: int) -> None:
        self.refusals, self.calls = [error] * times, 0


@contextmanager
def listening(folder: Path) -> Iterator[tuple[str, Refusing]]:
    """The application on a real socket, in a thread of this process: its URL and its engine."""
    service = Service(ServerConfig(), EngineConfig(model=str(folder), name="tiny"), Refusing.load)
    loaded = threading.Event()
    config = uvicorn.Config(build_app(service, lambda error: loaded.set()), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert loaded.wait(60)
        while not server.started:
            time.sleep(0.01)
        engine = service.engine
        assert isinstance(engine, Refusing)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", engine
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Refusing]]:
    """One label, so that it can be asked for everything; a sigmoid, so that its scores are probabilities."""
    folder = tmp_path_factory.mktemp("one")
    save_bert(folder, num_labels=1, num_hidden_layers=1)
    with listening(folder) as running:
        yield running


@pytest.fixture(scope="module")
def litellm() -> Iterator[Foreign]:
    with foreign("litellm") as running:
        yield running


def moderate(url: str, **options: Any) -> Any:
    with openai.OpenAI(api_key="any", base_url=f"{url}/v1", **options) as client:
        return client.moderations.create(input="the coffee").results[0].category_scores.model_extra


def rerank(url: str, **options: Any) -> Any:
    with cohere.ClientV2(api_key="any", base_url=url, **options) as client:
        return client.rerank(model="tiny", query="the coffee", documents=["was great"]).results[0].relevance_score


def classify(url: str) -> Any:
    return InferenceClient(url).text_classification("the coffee")[0].score


def rerank_there(**kwargs: Any) -> Any:
    import litellm

    return litellm.rerank(**kwargs).model_dump()["results"][0]["relevance_score"]


async def route_there(model: str, api_base: str, **kwargs: Any) -> Any:
    """By the router, as LiteLLM's proxy does."""
    from litellm import Router

    deployment = {"model_name": "ours", "litellm_params": {"model": model, "api_base": api_base}}
    answer = await Router(model_list=[deployment], num_retries=2).arerank(model="ours", **kwargs)
    return answer.model_dump()["results"][0]["relevance_score"]


# Both clients try twice more by default; after the third refusal they raise what this says.
RETRYING: dict[str, tuple[Callable[..., Any], AssayError, type[Exception]]] = {
    "openai, full": (moderate, FULL, openai.RateLimitError),
    "openai, overloaded": (moderate, OVERLOADED, openai.InternalServerError),
    "openai, draining": (moderate, DRAINING, openai.InternalServerError),
    "cohere, full": (rerank, FULL, cohere.TooManyRequestsError),
    "cohere, overloaded": (rerank, OVERLOADED, cohere.ServiceUnavailableError),
    "cohere, draining": (rerank, DRAINING, cohere.ServiceUnavailableError),
}


@pytest.mark.parametrize("name", RETRYING)
def test_a_refusal_is_tried_again(refusing: tuple[str, Refusing], name: str) -> None:
    url, engine = refusing
    ask, refusal, kind = RETRYING[name]
    engine.will_refuse(refusal, times=0)
    expected = ask(url)
    engine.will_refuse(refusal, times=1)
    assert ask(url) == expected
    assert engine.calls == 2
    engine.will_refuse(refusal, times=1)
    with pytest.raises(kind) as raised:
        ask(url, max_retries=0)
    assert engine.calls == 1
    assert refusal.message in str(raised.value)


def test_the_client_waits_as_long_as_it_is_told(
    refusing: tuple[str, Refusing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Retry-After: 1` is more than the client's own first wait of half a second."""
    url, engine = refusing
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    for refusal in (FULL, OVERLOADED):
        engine.will_refuse(refusal, times=2)
        moderate(url)
        assert engine.calls == 3
    assert waits == [1.0] * 4


@pytest.mark.parametrize("refusal", [FULL, DRAINING])
def test_inference_client_does_not_try_again(refusing: tuple[str, Refusing], refusal: AssayError) -> None:
    url, engine = refusing
    engine.will_refuse(refusal, times=1)
    with pytest.raises(HfHubHTTPError) as raised:
        classify(url)
    assert (engine.calls, raised.value.response.status_code) == (1, refusal.status)
    assert raised.value.response.headers.get("retry-after") == ("1" if refusal is FULL else None)


@pytest.mark.parametrize(
    ("refusal", "kind", "status"),
    [
        (FULL, "litellm.exceptions.RateLimitError", 429),
        (DRAINING, "litellm.exceptions.ServiceUnavailableError", 503),
    ],
)
def test_litellm(refusing: tuple[str, Refusing], litellm: Foreign, refusal: AssayError, kind: str, status: int) -> None:
    """Its functions do not try again; its router does, which is what its proxy is made of."""
    url, engine = refusing
    asked = {"model": "hosted_vllm/tiny", "api_base": url, "query": "the coffee", "documents": ["was great"]}
    engine.will_refuse(refusal, times=1)
    with pytest.raises(ClientError) as raised:
        litellm.run(rerank_there, **asked)
    assert (engine.calls, raised.value.kinds[0], raised.value.status) == (1, kind, status)
    engine.will_refuse(refusal, times=1)
    assert litellm.run(route_there, **asked) == pytest.approx(rerank(url))
    assert engine.calls == 3, "refused, answered, and asked once more for comparison"

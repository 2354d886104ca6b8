"""LiteLLM, unmodified and in an environment of its own: rerank by every provider that reaches a server of one's own,
moderation, embeddings, and the proxy's guardrails."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.foreign import ClientError, Foreign, foreign
from tests.e2e.process import Server, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

QUERY = "the coffee"
DOCUMENTS = ["was great", "so", "the update broke everything", "loved"]
LONG = "great " * 300


@pytest.fixture(scope="module")
def litellm() -> Iterator[Foreign]:
    with foreign("litellm") as running:
        yield running


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("one")
    save_bert(folder, seed=2, num_labels=1)
    with serving(f"reranker={folder}") as running:
        yield running


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Finds the same words toxic that its own `/v1/classify` does; no text is right or wrong here."""
    folder = tmp_path_factory.mktemp("guard")
    save_bert(folder, num_labels=2, id2label={0: "safe", 1: "toxic"})
    with serving(f"guard={folder}") as running:
        yield running


@pytest.fixture(scope="module")
def scores(reranker: Server) -> list[float]:
    """What the server says in vLLM's words, document by document."""
    body = {"text_1": QUERY, "text_2": DOCUMENTS}
    return [item["score"] for item in httpx.post(f"{reranker.url}/score", json=body).json()["data"]]


# These run in LiteLLM's environment.


def rerank(**kwargs: Any) -> Any:
    import litellm

    return litellm.rerank(**kwargs).model_dump()


async def arerank(**kwargs: Any) -> Any:
    import litellm

    return (await litellm.arerank(**kwargs)).model_dump()


def moderation(**kwargs: Any) -> Any:
    import litellm

    return litellm.moderation(**kwargs).model_dump()


async def amoderation(**kwargs: Any) -> Any:
    import litellm

    return (await litellm.amoderation(**kwargs)).model_dump()


def embedding(**kwargs: Any) -> Any:
    import litellm

    return litellm.embedding(**kwargs).model_dump()


async def generic_guardrail(api_base: str, texts: list[str], **params: Any) -> Any:
    from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api import generic_guardrail_api as module

    guardrail = module.GenericGuardrailAPI(
        api_base=api_base,
        guardrail_name="assay",
        event_hook="pre_call",
        default_on=True,
        additional_provider_specific_params=params,
    )
    return await guardrail.apply_guardrail(inputs={"texts": texts}, request_data={}, input_type="request")


async def detector_guardrail(base_url: str, content: str, **settings: Any) -> Any:
    from litellm.proxy.guardrails.guardrail_hooks.ibm_guardrails.ibm_detector import IBMGuardrailDetector

    guardrail = IBMGuardrailDetector(
        guardrail_name="assay", auth_token="any", base_url=base_url, detector_id="guard", **settings
    )
    data = {"messages": [{"role": "user", "content": content}]}
    return await guardrail.async_pre_call_hook(None, None, data, "completion")


async def moderation_guardrail(api_base: str, content: str) -> Any:
    from litellm.proxy.guardrails.guardrail_hooks.openai.moderations import OpenAIModerationGuardrail

    guardrail = OpenAIModerationGuardrail(guardrail_name="assay", api_key="any", api_base=api_base)
    return await guardrail.apply_guardrail(inputs={"texts": [content]}, request_data={}, input_type="request")


# --- rerank ---

PROVIDERS = {
    "cohere": "",
    "cohere, v1": "/v1/rerank",
    "jina_ai": "",
    "hosted_vllm": "",
    "huggingface": "",
    "together_ai": "/v1",
    "azure_ai": "",
    "litellm_proxy": "",
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_providers(litellm: Foreign, reranker: Server, scores: list[float], provider: str) -> None:
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    model = f"{provider.partition(',')[0]}/reranker"
    asked = {"model": model, "api_base": reranker.url + PROVIDERS[provider], "query": QUERY}
    asked |= {"api_key": "any", "return_documents": True}
    answer = litellm.run(rerank, documents=DOCUMENTS, **asked)
    assert [item["index"] for item in answer["results"]] == ranked
    assert [item["relevance_score"] for item in answer["results"]] == pytest.approx([scores[i] for i in ranked])
    assert [item["document"]["text"] for item in answer["results"]] == [DOCUMENTS[index] for index in ranked]
    assert litellm.run(arerank, documents=DOCUMENTS, **asked)["results"] == answer["results"]


@pytest.mark.parametrize("provider", ["cohere", "jina_ai", "hosted_vllm", "infinity"])
def test_top_n_without_documents(litellm: Foreign, reranker: Server, scores: list[float], provider: str) -> None:
    asked = {"api_base": reranker.url, "api_key": "any", "query": QUERY, "documents": DOCUMENTS}
    answer = litellm.run(rerank, model=f"{provider}/reranker", top_n=2, return_documents=False, **asked)
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:2]
    assert [item["index"] for item in answer["results"]] == best
    assert not any("document" in item for item in answer["results"])


def test_infinity_reads_documents_that_are_plain_strings(litellm: Foreign, reranker: Server) -> None:
    """docs/clients.md says so: the body is the one of Cohere, Jina and vLLM, whose readers want an object."""
    asked = {"api_base": reranker.url, "query": QUERY, "documents": DOCUMENTS}
    with pytest.raises(ClientError, match=r"document\.text\s+Input should be a valid string"):
        litellm.run(rerank, model="infinity/reranker", **asked)


def test_options_and_usage_of_hosted_vllm(litellm: Foreign, reranker: Server) -> None:
    asked = {"model": "hosted_vllm/reranker", "api_base": reranker.url, "query": QUERY, "documents": [LONG]}
    with pytest.raises(ClientError, match="maximum context length is 128 tokens") as refused:
        litellm.run(rerank, **asked)
    assert refused.value.kinds[0] == "litellm.exceptions.ContextWindowExceededError"
    answer = litellm.run(rerank, truncate_prompt_tokens=20, truncation_side="left", **asked)
    assert answer["meta"]["tokens"]["input_tokens"] == answer["meta"]["billed_units"]["total_tokens"] == 20


REFUSALS = {
    "an unknown model": ({"model": "cohere/other"}, "litellm.exceptions.NotFoundError", 404),
    "no query": ({"query": ""}, "litellm.exceptions.BadRequestError", 400),
    "a negative top_n": ({"top_n": -1}, "litellm.exceptions.BadRequestError", 400),
    "too long": ({"documents": [LONG]}, "litellm.exceptions.BadRequestError", 400),
    "too long for vLLM": (
        {"model": "hosted_vllm/reranker", "documents": [LONG]},
        "litellm.exceptions.ContextWindowExceededError",
        400,
    ),
    "too long for TEI": ({"model": "huggingface/reranker", "documents": [LONG]}, "litellm.exceptions.APIError", 413),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_its_own_exceptions(litellm: Foreign, reranker: Server, name: str) -> None:
    change, kind, status = REFUSALS[name]
    asked = {"model": "cohere/reranker", "query": QUERY, "documents": DOCUMENTS} | change
    with pytest.raises(ClientError) as refused:
        litellm.run(rerank, api_base=reranker.url, api_key="any", **asked)
    assert (refused.value.kinds[0], refused.value.status) == (kind, status)


def test_a_classifier_does_not_rerank(litellm: Foreign, guard: Server) -> None:
    with pytest.raises(ClientError, match="has 2 labels; a relevance score needs a model with one") as refused:
        litellm.run(rerank, model="hosted_vllm/guard", api_base=guard.url, query=QUERY, documents=DOCUMENTS)
    assert refused.value.kinds[0] == "litellm.exceptions.BadRequestError"


# --- moderation, embeddings ---


@pytest.mark.parametrize("function", [moderation, amoderation])
def test_moderation(litellm: Foreign, guard: Server, function: Any) -> None:
    answer = litellm.run(function, model="guard", input=QUERY, api_base=f"{guard.url}/v1", api_key="any")
    (result,) = answer["results"]
    (expected,) = httpx.post(f"{guard.url}/v1/moderations", json={"input": QUERY}).json()["results"]
    assert result["flagged"] is expected["flagged"]
    for field in ("categories", "category_scores"):  # OpenAI's own categories come out too, as None
        assert {key: value for key, value in result[field].items() if value is not None} == expected[field]
    with pytest.raises(ClientError, match="cannot be empty") as refused:
        litellm.run(function, input=" ", api_base=f"{guard.url}/v1", api_key="any")
    assert refused.value.status == 400


def test_embeddings_are_raw_logits(litellm: Foreign, guard: Server) -> None:
    body = {"input": [QUERY, "so"], "use_activation": False}
    expected = [row["probs"] for row in httpx.post(f"{guard.url}/v1/classify", json=body).json()["data"]]
    for provider in ("hosted_vllm", "openai"):
        asked = {"model": f"{provider}/guard", "api_base": f"{guard.url}/v1", "api_key": "any"}
        rows = litellm.run(embedding, input=[QUERY, "so"], **asked)["data"]
        for row, logits in zip(rows, expected, strict=True):
            assert row["embedding"] == pytest.approx(logits, abs=1e-5)


# --- the proxy's guardrails ---


def threshold_around(guard: Server, text: str) -> tuple[float, float]:
    """Below and above what the model says of a text."""
    (row,) = httpx.post(f"{guard.url}/v1/classify", json={"input": text}).json()["data"]
    return row["probs"][1] * 0.99, min(1.0, row["probs"][1] * 1.01)


def test_generic_guardrail(litellm: Foreign, guard: Server) -> None:
    below, above = threshold_around(guard, QUERY)
    with pytest.raises(ClientError, match=r"toxic: score 0\.\d+ at threshold .*, in text 1 of the request") as blocked:
        litellm.run(generic_guardrail, guard.url, ["  ", QUERY], threshold=below)
    assert blocked.value.kinds[0].endswith("GuardrailRaisedException")
    assert litellm.run(generic_guardrail, guard.url, [QUERY], threshold=above) == {"texts": [QUERY]}
    assert litellm.run(generic_guardrail, guard.url, [QUERY], safe_labels=["toxic"]) == {"texts": [QUERY]}
    assert litellm.run(generic_guardrail, guard.url, []) == {"texts": []}
    for failing in ({"texts": [LONG]}, {"texts": [QUERY], "model": "other"}):
        with pytest.raises(ClientError, match="Generic Guardrail API failed: Client error") as failed:
            litellm.run(generic_guardrail, guard.url, **failing)
        assert not failed.value.kinds[0].endswith("GuardrailRaisedException")


def test_detector_guardrail(litellm: Foreign, guard: Server) -> None:
    below, above = threshold_around(guard, QUERY)
    with pytest.raises(ClientError, match=r"TOXIC \(score: 0\.\d+\)"):
        litellm.run(detector_guardrail, guard.url, QUERY, detector_params={"threshold": below})
    for settings in ({"detector_params": {"threshold": above}}, {"score_threshold": above}):
        passed = litellm.run(detector_guardrail, guard.url, QUERY, **settings)
        assert passed["messages"][0]["content"] == QUERY


def test_moderation_guardrail(litellm: Foreign, guard: Server) -> None:
    (result,) = httpx.post(f"{guard.url}/v1/moderations", json={"input": QUERY}).json()["results"]
    assert result["flagged"], "this text must be one that is flagged"
    with pytest.raises(ClientError, match="Violated OpenAI moderation policy") as blocked:
        litellm.run(moderation_guardrail, f"{guard.url}/v1", QUERY)
    assert blocked.value.status == 400

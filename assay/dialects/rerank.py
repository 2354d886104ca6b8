"""POST /rerank with `documents`, as vLLM, Cohere and Jina have it: documents sorted by their relevance to a query.

Knows nothing of the model but how many labels it has.
"""

import msgspec
from msgspec.structs import replace

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, ModelFacts, decode
from assay.dialects.inputs import OptionFields, WindowFields, pair_prompt, window_fields
from assay.errors import AssayError, RequestError

# What sglang-router and smg, and vllm-router, put into `model` where the caller sent none.
_GATEWAYS_NAMES = ("unknown", "default")


class Document(msgspec.Struct):
    text: str


class RerankRequest(OptionFields, kw_only=True):
    """top_n: how many results to return; 0 or absent means all. return_documents: vLLM's and Jina's answer has them.
    instruction, or SGLang's instruct: for templates that take one.
    """

    query: str
    documents: str | list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None
    instruction: str | None = None
    instruct: str | None = None


class RerankResult(msgspec.Struct, kw_only=True):
    index: int
    document: Document | msgspec.UnsetType = msgspec.UNSET
    relevance_score: float
    window: WindowFields | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class RerankResponse(msgspec.Struct):
    id: str
    model: str
    usage: Usage
    results: list[RerankResult]


class ErrorInfo(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(msgspec.Struct):
    error: ErrorInfo


def parse(incoming: Incoming) -> Call:
    """The call's context is the request."""
    request = decode(incoming.body, RerankRequest)
    if request.top_n is not None and request.top_n < 0:
        raise RequestError(f"top_n is {request.top_n}; it must be at least 1, or 0 for all.", param="top_n")
    texts = _texts(request)
    if not texts:
        raise RequestError("`documents` is empty; it needs at least one document.", param="documents")
    task = request.instruction or request.instruct
    prompts = [replace(pair_prompt(request.query, text, "`query`", "query"), instruction=task) for text in texts]
    call = request.call([*prompts], context=request)
    return replace(call, any_model=request.model in _GATEWAYS_NAMES)


def _texts(request: RerankRequest) -> list[str]:
    documents = [request.documents] if isinstance(request.documents, str) else request.documents
    return [document if isinstance(document, str) else document.text for document in documents]


def check(call: Call, model: ModelFacts) -> None:
    if len(model.labels) > 1:
        raise RequestError(
            f"The model `{model.name}` has {len(model.labels)} labels; a relevance score needs a model with one. "
            "/v1/classify gives the probability of each label."
        )


def render(answer: Answer) -> RerankResponse:
    request: RerankRequest = answer.call.context
    scores = [prediction.probs[0] for prediction in answer.predictions]
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n or None]
    documents = {} if request.return_documents is False else dict(enumerate(map(Document, _texts(request))))
    tokens = sum(prediction.num_tokens for prediction in answer.predictions)
    return RerankResponse(
        id=f"rerank-{answer.request_id}",
        model=answer.model,
        usage=Usage(tokens, tokens),
        results=[
            RerankResult(
                index=i,
                document=documents.get(i, msgspec.UNSET),
                relevance_score=scores[i],
                window=window_fields(answer.predictions[i]),
            )
            for i in ranked
        ],
    )


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(ErrorInfo(error.message, error.type, error.param, error.status))


DIALECT = Dialect(
    name="rerank",
    paths=("/rerank", "/v1/rerank", "/v2/rerank", "/invocations"),
    keys=frozenset({"documents"}),
    parse=parse,
    check=check,
    render=render,
    render_error=render_error,
    request=RerankRequest,
    response=RerankResponse,
    error=ErrorResponse,
    summary="Documents by their relevance to a query (vLLM, Cohere, Jina)",
    example={"query": "Where is coffee good?", "documents": ["The new café is great.", "The update broke everything."]},
    example_labels=("relevance",),
)

"""Scores of pairs and of prompts: vLLM's /score and /pooling.

Knows nothing of the model but how many labels it has.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, ModelFacts, decode
from assay.dialects.inputs import InputFields, OptionFields, pair_prompt
from assay.errors import AssayError, RequestError
from assay.sequence import TextPrompt

# The four spellings of "first texts, second texts".
_SPELLINGS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))

Texts = str | list[str]


class ScoreRequest(OptionFields, kw_only=True):
    """One of the four spellings, each side a text or a list: 1:1, 1:N or N:N. instruction: as in rerank."""

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    instruction: str | None = None


class Score(msgspec.Struct):
    index: int
    object: Literal["score"]
    score: float


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ScoreResponse(msgspec.Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class ErrorInfo(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(msgspec.Struct):
    error: ErrorInfo


def parse_score(incoming: Incoming) -> Call:
    request = decode(incoming.body, ScoreRequest)
    first, second = _spelling(request)
    pairs = _pairs(getattr(request, first), getattr(request, second), first, second)
    return request.call([replace(pair, instruction=request.instruction or None) for pair in pairs])


def _spelling(request: ScoreRequest) -> tuple[str, str]:
    given = [pair for pair in _SPELLINGS if all(getattr(request, name) is not None for name in pair)]
    if len(given) != 1:
        allowed = ", ".join(f"`{first}` with `{second}`" for first, second in _SPELLINGS)
        raise RequestError(f"Send the two sides of the pairs as exactly one of {allowed}.", param="text_1")
    return given[0]


def _pairs(first: Texts, second: Texts, first_name: str, second_name: str) -> list[TextPrompt]:
    left = [first] if isinstance(first, str) else first
    right = [second] if isinstance(second, str) else second
    for side, name in ((left, first_name), (right, second_name)):
        if not side:
            raise RequestError(f"`{name}` is empty; it needs at least one text.", param=name)
    if len(left) != len(right) and len(left) != 1:
        raise RequestError(
            f"Input lengths must be either 1:1, 1:N or N:N; `{first_name}` has {len(left)} and `{second_name}` "
            f"{len(right)}.",
            param=second_name,
        )
    queries = [pair_prompt(text, None, f"`{first_name}` at index {i}", first_name) for i, text in enumerate(left)]
    if len(queries) == 1:
        queries *= len(right)
    return [TextPrompt(query.text, document) for query, document in zip(queries, right, strict=True)]


def check_score(call: Call, model: ModelFacts) -> None:
    if len(model.labels) > 1:
        raise RequestError(
            f"The model `{model.name}` has {len(model.labels)} labels; a score needs a model with one. "
            "/v1/classify gives the probability of each label."
        )


def render_score(answer: Answer) -> ScoreResponse:
    return ScoreResponse(
        id=f"score-{answer.request_id}",
        object="list",
        created=answer.created,
        model=answer.model,
        data=[Score(index, "score", prediction.probs[0]) for index, prediction in enumerate(answer.predictions)],
        usage=_usage(answer),
    )


def _usage(answer: Answer) -> Usage:
    tokens = sum(prediction.num_tokens for prediction in answer.predictions)
    return Usage(tokens, tokens)


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(ErrorInfo(error.message, error.type, error.param, error.status))


SCORE = Dialect(
    name="score",
    paths=("/v1/score", "/score", "/invocations"),
    keys=frozenset(name for pair in _SPELLINGS for name in pair) - {"items", "documents"},
    parse=parse_score,
    check=check_score,
    render=render_score,
    render_error=render_error,
    request=ScoreRequest,
    response=ScoreResponse,
    error=ErrorResponse,
    summary="Scores of pairs, by a model with one label (vLLM)",
    example={"text_1": "Where is coffee good?", "text_2": ["The new café is great.", "The update broke everything."]},
    example_labels=("relevance",),
)


# --- vLLM's /pooling ---


class PoolingRequest(InputFields, kw_only=True):
    task: str | None = None
    encoding_format: str | None = None


class Pooled(msgspec.Struct):
    index: int
    object: Literal["pooling"]
    data: list[float]


class PoolingResponse(msgspec.Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


def parse_pooling(incoming: Incoming) -> Call:
    request = decode(incoming.body, PoolingRequest)
    for name, allowed in (("task", "classify"), ("encoding_format", "float")):
        value = getattr(request, name)
        if value not in (None, allowed):
            raise RequestError(f"`{name}` is {value!r}; this server's models only do {allowed!r}.", param=name)
    return request.call(request.prompts())


def render_pooling(answer: Answer) -> PoolingResponse:
    return PoolingResponse(
        id=f"pooling-{answer.request_id}",
        object="list",
        created=answer.created,
        model=answer.model,
        data=[Pooled(index, "pooling", prediction.probs) for index, prediction in enumerate(answer.predictions)],
        usage=_usage(answer),
    )


POOLING = Dialect(
    name="pooling",
    paths=("/pooling",),
    parse=parse_pooling,
    render=render_pooling,
    render_error=render_error,
    request=PoolingRequest,
    response=PoolingResponse,
    error=ErrorResponse,
    summary="Probabilities of each prompt, as pooled data (vLLM)",
    example={"input": "Loved the new café—coffee was great."},
)

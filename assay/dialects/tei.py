"""Text Embeddings Inference: POST /predict, POST /rerank with `texts`, and the body of GET /info.

`["a", "b"]` is one pair here. Knows nothing of the model but its labels.
"""

from typing import Literal, NamedTuple

import msgspec

from assay import __version__
from assay.dialects.dialect import Answer, Call, Dialect, Incoming, ModelFacts, decode
from assay.errors import (
    AssayError,
    ContextLengthError,
    DeadlineError,
    InternalError,
    OverloadedError,
    QueueFullError,
    RequestError,
    UnavailableError,
)
from assay.sequence import Options, Prediction, Prompt, TextPrompt

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation"]
_Kind = Literal["classifier", "reranker"]
_Side = Literal["left", "right"]

_SIDES: dict[str, _Side] = {"Left": "left", "left": "left", "Right": "right", "right": "right"}
_MODEL = "model"  # the field at fault where the served model itself is; no request here names one


class _Refusal(NamedTuple):
    status: int
    error_type: ErrorType


# TEI's statuses, router/src/http/server.rs. Too long is a validation error there, and validation is 413.
_REFUSALS: tuple[tuple[type[AssayError], _Refusal], ...] = (
    (ContextLengthError, _Refusal(413, "Validation")),
    (OverloadedError, _Refusal(503, "Overloaded")),
    (QueueFullError, _Refusal(429, "Overloaded")),
    (DeadlineError, _Refusal(504, "Overloaded")),
    (UnavailableError, _Refusal(503, "Unhealthy")),
    (InternalError, _Refusal(424, "Backend")),
)


class _Scoring(msgspec.Struct):
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool = False


class PredictRequest(_Scoring, kw_only=True):
    """inputs: a text, a pair [a, b], or a batch [[a], [a, b], …]."""

    inputs: str | list[str | list[str]]


class RerankRequest(_Scoring, kw_only=True):
    query: str
    texts: list[str]
    return_text: bool = False


class Label(msgspec.Struct):
    score: float
    label: str


class Rank(msgspec.Struct, kw_only=True):
    index: int
    text: str | msgspec.UnsetType = msgspec.UNSET
    score: float


class ErrorResponse(msgspec.Struct):
    error: str
    error_type: ErrorType


class Model(msgspec.Struct):
    id2label: dict[str, str]
    label2id: dict[str, int]


class Info(msgspec.Struct, kw_only=True):
    """What GET /info says."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[_Kind, Model]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: None = None
    max_client_batch_size: int
    auto_truncate: bool = False
    tokenization_workers: int
    version: str = __version__
    sha: None = None
    docker_label: None = None


def model_type(labels: tuple[str, ...]) -> dict[_Kind, Model]:
    """`Info.model_type` of a model's labels; with one label it is a reranker, as TEI tells them apart."""
    ids = {str(index): label for index, label in enumerate(labels)}
    kind: _Kind = "reranker" if len(labels) == 1 else "classifier"
    return {kind: Model(ids, {label: index for index, label in enumerate(labels)})}


def parse_predict(incoming: Incoming) -> Call:
    request = decode(incoming.body, PredictRequest)
    inputs = request.inputs
    if isinstance(inputs, str):
        inputs = [inputs]
    one = [item for item in inputs if isinstance(item, str)]
    batch = [one] if one else [item for item in inputs if isinstance(item, list)]
    if not inputs or len(one) not in (0, len(inputs)):
        raise RequestError("`inputs` must be a text, a pair [a, b], or a batch [[a], [a, b], …].", param="inputs")
    return Call([_prompt(texts) for texts in batch], _options(request), context=bool(one))


def _prompt(texts: list[str]) -> Prompt:
    if not 1 <= len(texts) <= 2:
        raise RequestError(f"`inputs` has an item of {len(texts)} texts; it must be one, or a pair.", param="inputs")
    if not any(text.strip() for text in texts):
        raise RequestError("`inputs` cannot be empty or whitespace only", param="inputs")
    return TextPrompt(*texts)


def parse_rerank(incoming: Incoming) -> Call:
    request = decode(incoming.body, RerankRequest)
    if not request.texts:
        raise RequestError("`texts` cannot be empty", param="texts")
    if not request.query.strip():
        raise RequestError("`query` cannot be empty or whitespace only", param="query")
    prompts: list[Prompt] = [TextPrompt(request.query, text) for text in request.texts]
    return Call(prompts, _options(request), context=request.texts if request.return_text else None)


def _options(request: _Scoring) -> Options:
    direction = request.truncation_direction
    return Options(
        truncate_prompt_tokens=-1 if request.truncate else None,
        truncation_side=None if direction is None else _SIDES[direction],
        activation="none" if request.raw_scores else None,
    )


def render_predict(answer: Answer) -> list[Label] | list[list[Label]]:
    rows = [_labels(prediction, answer.labels) for prediction in answer.predictions]
    is_one = answer.call.context
    return rows[0] if is_one else rows


def _labels(prediction: Prediction, labels: tuple[str, ...]) -> list[Label]:
    """Every label, high to low; equal scores in the model's order."""
    row = [Label(score, label) for score, label in zip(prediction.probs, labels, strict=True)]
    return sorted(row, key=lambda item: item.score, reverse=True)


def check_rerank(call: Call, model: ModelFacts) -> None:
    if len(model.labels) != 1:
        raise RequestError(
            f"The model is not a reranker: it has {len(model.labels)} labels, and ranking needs one. POST /predict.",
            param=_MODEL,
        )


def render_rerank(answer: Answer) -> list[Rank]:
    texts = answer.call.context
    ranks = [
        Rank(index=index, text=texts[index] if texts else msgspec.UNSET, score=prediction.probs[0])
        for index, prediction in enumerate(answer.predictions)
    ]
    return sorted(ranks, key=lambda rank: rank.score, reverse=True)


def headers(answer: Answer) -> dict[str, str]:
    """Beside the stages' times, which every answer has."""
    prompts = [prompt for prompt in answer.call.prompts if isinstance(prompt, TextPrompt)]
    return {
        "x-compute-tokens": str(sum(prediction.num_tokens for prediction in answer.predictions)),
        "x-compute-characters": str(sum(len(prompt.text) + len(prompt.text_pair or "") for prompt in prompts)),
        "x-total-time": str(int(answer.seconds * 1000)),  # milliseconds
    }


def _refusal(error: AssayError) -> _Refusal:
    if error.status == 400 and error.param == _MODEL:
        return _Refusal(424, "Backend")
    for kind, refusal in _REFUSALS:
        if isinstance(error, kind):
            return refusal
    return _Refusal(422 if error.status == 400 else error.status, "Validation")


def render_error(error: AssayError) -> ErrorResponse:
    message = error.message
    if isinstance(error, ContextLengthError):
        message = error.with_advice("Shorten it, or set `truncate` to true to cut it.")
    return ErrorResponse(message, _refusal(error).error_type)


def status(error: AssayError) -> int:
    return _refusal(error).status


PREDICT = Dialect(
    name="tei_predict",
    paths=("/predict",),
    keys=frozenset({"inputs"}),
    parse=parse_predict,
    render=render_predict,
    render_error=render_error,
    headers=headers,
    status=status,
    request=PredictRequest,
    response=list[Label] | list[list[Label]],
    error=ErrorResponse,
    summary="Every label of a text or a pair, high to low (Text Embeddings Inference)",
    example={"inputs": "Loved the new café—coffee was great."},
)

RERANK = Dialect(
    name="tei_rerank",
    paths=("/rerank", "/invocations"),
    keys=frozenset({"texts"}),
    parse=parse_rerank,
    check=check_rerank,
    render=render_rerank,
    render_error=render_error,
    headers=headers,
    status=status,
    request=RerankRequest,
    response=list[Rank],
    error=ErrorResponse,
    summary="Texts by their relevance to a query (Text Embeddings Inference)",
    example={"query": "Where is coffee good?", "texts": ["The new café is great.", "The update broke everything."]},
    example_labels=("relevance",),
)

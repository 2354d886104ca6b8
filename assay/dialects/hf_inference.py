"""Hugging Face Inference and semantic-router: POST / and /classify with `inputs` give every label of a text, scored.

A list is a batch here, and never a pair. Knows nothing of the model but, once it has answered, its labels.
"""

from functools import partial

import msgspec

from assay.config import Activation
from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.errors import AssayError, ContextLengthError, RequestError
from assay.sequence import Options, Prediction, TextPrompt


class Pair(msgspec.Struct):
    """As a transformers pipeline takes them: two texts that the model reads together."""

    text: str
    text_pair: str | None = None


class Parameters(msgspec.Struct):
    """What a text-classification pipeline takes; what it has beyond these has no effect here.

    function_to_apply: None takes the model's own. top_k: None gives every label. truncation: None refuses a text that
    is too long, unless `max_length` says where to cut. candidate_labels: zero-shot classification's, known in order to
    be refused.
    """

    function_to_apply: Activation | None = None
    top_k: int | None = None
    truncation: bool | None = None
    max_length: int | None = None
    candidate_labels: list[str] | str | None = None


class ClassifyRequest(msgspec.Struct):
    inputs: str | Pair | list[str | Pair]
    parameters: Parameters | msgspec.UnsetType | None = msgspec.UNSET


class Label(msgspec.Struct):
    label: str
    score: float


class ErrorResponse(msgspec.Struct):
    error: str
    error_type: str


class _Shape(msgspec.Struct, frozen=True):
    """is_bare: one text, asked by a caller who expects its labels without a list around them."""

    is_bare: bool
    top_k: int | None


def parse(incoming: Incoming, always_lists: bool) -> Call:
    """Hugging Face's own clients read the first of a list of lists, also for one text; semantic-router reads a list.

    always_lists: the path is one that only the former call. Elsewhere `parameters` tells them apart: InferenceClient
    sends it always, even empty, and semantic-router never.
    """
    request = decode(incoming.body, ClassifyRequest)
    is_one = not isinstance(request.inputs, list)
    items = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    if not items:
        raise RequestError("`inputs` is an empty list; send at least one text.", param="inputs")
    parameters = request.parameters or Parameters()
    if parameters.top_k is not None and parameters.top_k < 1:
        raise RequestError(f"top_k is {parameters.top_k}; it must be at least 1.", param="top_k")
    if parameters.candidate_labels is not None:
        raise RequestError(
            "`candidate_labels` asks for zero-shot classification; this model has labels of its own. Leave it out to "
            "get their scores.",
            param="candidate_labels",
        )
    is_bare = is_one and not always_lists and request.parameters is msgspec.UNSET
    return Call(
        prompts=[_prompt(item) for item in items],
        options=Options(truncate_prompt_tokens=_limit(parameters), activation=parameters.function_to_apply),
        context=_Shape(is_bare, parameters.top_k),
    )


def _prompt(item: str | Pair) -> TextPrompt:
    prompt = TextPrompt(item) if isinstance(item, str) else TextPrompt(item.text, item.text_pair)
    if not (prompt.text + (prompt.text_pair or "")).strip():
        raise RequestError("`inputs` holds a text that is empty or whitespace only.", param="inputs")
    return prompt


def _limit(parameters: Parameters) -> int | None:
    """Tokens to cut to, as transformers reads the two: a `max_length` alone cuts."""
    if parameters.truncation is False or (parameters.truncation is None and parameters.max_length is None):
        return None
    return -1 if parameters.max_length is None else parameters.max_length


def render(answer: Answer) -> list[Label] | list[list[Label]]:
    shape: _Shape = answer.call.context
    rows = [_labels(prediction, answer.labels)[: shape.top_k] for prediction in answer.predictions]
    return rows[0] if shape.is_bare else rows


def _labels(prediction: Prediction, labels: tuple[str, ...]) -> list[Label]:
    """Every label, high to low; equal scores in the model's order."""
    row = [Label(label, score) for label, score in zip(labels, prediction.probs, strict=True)]
    return sorted(row, key=lambda item: item.score, reverse=True)


def render_error(error: AssayError) -> ErrorResponse:
    message = error.message
    if isinstance(error, ContextLengthError):
        message = error.with_advice("Shorten it, or set `parameters.truncation` to true to cut it.")
    return ErrorResponse(message, error.type)


HF_INFERENCE = Dialect(
    name="hf_inference",
    paths=("/", "/invocations"),
    keys=frozenset({"inputs"}),
    parse=partial(parse, always_lists=True),
    render=render,
    render_error=render_error,
    request=ClassifyRequest,
    response=list[list[Label]],
    error=ErrorResponse,
    summary="Every label of each text, high to low (Hugging Face Inference)",
    example={"inputs": "Loved the new café—coffee was great.", "parameters": {"top_k": 2}},
)

SEMANTIC_ROUTER = Dialect(
    name="semantic_router",
    paths=("/classify",),
    keys=frozenset({"inputs"}),
    parse=partial(parse, always_lists=False),
    render=render,
    render_error=render_error,
    request=ClassifyRequest,
    response=list[Label] | list[list[Label]],
    error=ErrorResponse,
    summary="Every label of a text, high to low (semantic-router)",
    example={"inputs": "Loved the new café—coffee was great."},
)

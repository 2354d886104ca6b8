"""OpenAI's POST /v1/moderations: every label of the served model is a category, scored and flagged or not.

The rule of `flagged_labels` in flags.py: a category is true where its label is not a safe one and its probability is
0.5 or more, or reaches the label's own threshold where the model's calibration has one; a result is flagged where any
category is. A safe label is listed with its score and is never true. `model` chooses among the served models; any other
name, as OpenAI's that callers send, means the default one. Images are refused.
"""

from typing import Literal

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.dialects.flags import check_flags, flagged_labels, thresholds_of
from assay.errors import AssayError, RequestError
from assay.sequence import Options, Prediction, TextPrompt


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    """Known in order to be refused by name; its picture is not read."""


class ModerationRequest(msgspec.Struct):
    """input: a text, texts, or the parts of one multi-modal input, of which only a single text can be scored."""

    input: str | list[str | TextPart | ImagePart]
    model: str | None = None


class Result(msgspec.Struct):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class ModerationResponse(msgspec.Struct):
    id: str
    model: str
    results: list[Result]


class Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(msgspec.Struct):
    error: Error


def parse(incoming: Incoming) -> Call:
    request = decode(incoming.body, ModerationRequest)
    value = request.input
    items = [value] if isinstance(value, str) else value
    if not items:
        raise RequestError("`input` is an empty list; send at least one text.", param="input")
    if any(isinstance(item, ImagePart) for item in items):
        raise RequestError("`input` holds an image; this server reads text only.", param="input")
    if len(items) > 1 and any(isinstance(item, TextPart) for item in items):
        raise RequestError("`input` has several parts; send one text part, or a list of strings.", param="input")
    texts = [item.text if isinstance(item, TextPart) else item for item in items if not isinstance(item, ImagePart)]
    for text in texts:
        if not text.strip():
            raise RequestError("Input cannot be empty or whitespace only", param="input")
    return Call([TextPrompt(text) for text in texts], Options(), model=request.model, any_model=True)


def render(answer: Answer) -> ModerationResponse:
    thresholds = thresholds_of(answer)
    return ModerationResponse(
        id=f"modr-{answer.request_id}",
        model=answer.model,
        results=[_result(prediction, answer.labels, thresholds) for prediction in answer.predictions],
    )


def _result(prediction: Prediction, labels: tuple[str, ...], thresholds: tuple[float, ...]) -> Result:
    flags = flagged_labels(prediction, labels, thresholds)
    return Result(
        flagged=any(flags),
        categories=dict(zip(labels, flags, strict=True)),
        category_scores=dict(zip(labels, prediction.probs, strict=True)),
        category_applied_input_types={label: ["text"] for label in labels},
    )


def render_error(error: AssayError) -> ErrorResponse:
    kind = "invalid_request_error" if isinstance(error, RequestError) else error.type
    return ErrorResponse(Error(message=error.message, type=kind, param=error.param, code=error.type))


DIALECT = Dialect(
    name="moderation",
    paths=("/v1/moderations",),
    parse=parse,
    check=check_flags,
    render=render,
    render_error=render_error,
    request=ModerationRequest,
    response=ModerationResponse,
    error=ErrorResponse,
    summary="Labels as categories, flagged or not (OpenAI moderations)",
    example={"input": "You broke everything, you fool."},
    example_labels=("safe", "toxic"),
)

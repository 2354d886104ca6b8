"""POST /v1/classify as the SGLang document and vLLM speak it: one label and its probabilities for each prompt.

Knows nothing of the model: whether a token id exists or a text is too long, the engine says.
"""

from typing import Literal

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.dialects.inputs import InputFields, WindowFields, window_fields
from assay.errors import AssayError
from assay.sequence import Prediction


class Classification(msgspec.Struct):
    index: int
    label: str
    probs: list[float]
    num_classes: int
    window: WindowFields | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ClassifyResponse(msgspec.Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class ErrorResponse(msgspec.Struct):
    """The document's three keys, and the ones that vLLM's and SGLang's flat readers look for."""

    error: str
    type: str
    code: int
    message: str
    param: str | None
    object: Literal["error"] = "error"


def parse(incoming: Incoming) -> Call:
    request = decode(incoming.body, InputFields)
    return request.call(request.prompts())


def render(answer: Answer) -> ClassifyResponse:
    tokens = sum(prediction.num_tokens for prediction in answer.predictions)
    return ClassifyResponse(
        id=f"classify-{answer.request_id}",
        object="list",
        created=answer.created,
        model=answer.model,
        data=[_classification(index, prediction) for index, prediction in enumerate(answer.predictions)],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _classification(index: int, prediction: Prediction) -> Classification:
    return Classification(index, prediction.label, prediction.probs, len(prediction.probs), window_fields(prediction))


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(
        error=error.message, type=error.type, code=error.status, message=error.message, param=error.param
    )


DIALECT = Dialect(
    name="classify",
    paths=("/v1/classify", "/classify", "/invocations"),
    keys=frozenset({"input", "messages"}),
    parse=parse,
    render=render,
    render_error=render_error,
    request=InputFields,
    response=ClassifyResponse,
    error=ErrorResponse,
    summary="Classify texts, pairs, token ids or a conversation (SGLang document, vLLM)",
    example={"input": ["Loved the new café—coffee was great.", "This update broke everything."]},
)

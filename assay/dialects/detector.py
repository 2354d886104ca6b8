"""The detector API of the FMS guardrails orchestrator and TrustyAI: POST /api/v1/text/contents.

A detection is a label that the rule of `flagged_labels` in flags.py flags, over the whole text, from 0 to its length
in code points; a text without one gets an empty list. `detector_params` may move the rule: `threshold`, of all labels
(without it each has its own from the model's calibration, else 0.5), and `safe_labels`, names or indexes, as in
TrustyAI's detector. Its own default, that whatever label comes first is safe, is
not kept: where labels have names, names decide. The header `detector-id` chooses among the served models; any other
name, or none, means the default one. A text that is empty or white space is not scored: there is nothing to detect.
"""

from typing import Annotated

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.dialects.flags import check_flags, flagged_labels, thresholds_of
from assay.errors import AssayError, RequestError
from assay.sequence import Options, Prediction, TextPrompt


class DetectorParams(msgspec.Struct):
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    safe_labels: list[str | int] = []
    truncate_prompt_tokens: int | None = None


class ContentsRequest(msgspec.Struct):
    contents: list[str]
    detector_params: DetectorParams | None = None


class Detection(msgspec.Struct):
    """detection, detection_type: the label, whichever of the two a reader looks at."""

    start: int
    end: int
    text: str
    detection: str
    detection_type: str
    score: float


class ErrorResponse(msgspec.Struct):
    code: int
    message: str


def parse(incoming: Incoming) -> Call:
    request = decode(incoming.body, ContentsRequest)
    if not request.contents:
        raise RequestError("`contents` is an empty list; send at least one text.", param="contents")
    params = request.detector_params or DetectorParams()
    return Call(
        prompts=[TextPrompt(text) for text in request.contents if text.strip()],
        options=Options(truncate_prompt_tokens=params.truncate_prompt_tokens),
        model=incoming.headers.get(b"detector-id", b"").decode("latin-1"),
        any_model=True,
        context=(request.contents, params),
    )


def render(answer: Answer) -> list[list[Detection]]:
    contents, params = answer.call.context
    predictions = iter(answer.predictions)
    return [_detections(text, next(predictions), answer, params) if text.strip() else [] for text in contents]


def _detections(text: str, prediction: Prediction, answer: Answer, params: DetectorParams) -> list[Detection]:
    thresholds = thresholds_of(answer, params.threshold)
    flags = flagged_labels(prediction, answer.labels, thresholds, params.safe_labels)
    return [
        Detection(start=0, end=len(text), text=text, detection=label, detection_type=label, score=score)
        for label, score, is_flagged in zip(answer.labels, prediction.probs, flags, strict=True)
        if is_flagged
    ]


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(code=status(error), message=error.message)


def status(error: AssayError) -> int:
    """A body that does not fit is 422 in the API's own description."""
    return 422 if error.status == 400 else error.status


DIALECT = Dialect(
    name="detector",
    paths=("/api/v1/text/contents",),
    parse=parse,
    check=check_flags,
    render=render,
    render_error=render_error,
    status=status,
    request=ContentsRequest,
    response=list[list[Detection]],
    error=ErrorResponse,
    summary="Detections in each text (FMS guardrails, TrustyAI)",
    example={"contents": ["You broke everything, you fool."], "detector_params": {"threshold": 0.5}},
    example_labels=("safe", "toxic"),
)

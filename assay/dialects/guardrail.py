"""LiteLLM's generic guardrail: POST /beta/litellm_basic_guardrail_api says whether texts may pass.

BLOCKED where the rule of `flagged_labels` in flags.py flags a label of any text, else NONE; texts are not rewritten.
In the proxy's configuration `additional_provider_specific_params` may hold `threshold` (of all labels; without it each
has its own from the model's calibration, else 0.5), `safe_labels` (names or indexes), `truncate_prompt_tokens`, and
`model`, one of several that are served; the request's own `model` is the one that is guarded. Only `texts` are judged:
images and tools pass unread. A text that is empty or white space is not scored. What cannot be scored is an error,
upon which LiteLLM lets nothing through.
"""

from typing import Annotated, Literal

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.dialects.flags import check_flags, flagged_labels, thresholds_of
from assay.errors import AssayError
from assay.sequence import Options, TextPrompt


class Params(msgspec.Struct):
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    safe_labels: list[str | int] = []
    truncate_prompt_tokens: int | None = None
    model: str | None = None


class GuardrailRequest(msgspec.Struct):
    """input_type: whether the texts are a caller's or a model's; they are judged alike."""

    texts: list[str] | None
    input_type: str = "request"
    additional_provider_specific_params: Params | None = None
    litellm_call_id: str | None = None


class GuardrailResponse(msgspec.Struct):
    """texts: None leaves them as they are."""

    action: Literal["NONE", "BLOCKED"]
    blocked_reason: str | None = None
    texts: None = None


class ErrorResponse(msgspec.Struct):
    """As LiteLLM's example server, a FastAPI application; the proxy reads the status alone."""

    detail: str


def parse(incoming: Incoming) -> Call:
    request = decode(incoming.body, GuardrailRequest)
    params = request.additional_provider_specific_params or Params()
    texts = request.texts or []
    places = [index for index, text in enumerate(texts) if text.strip()]
    return Call(
        prompts=[TextPrompt(texts[index]) for index in places],
        options=Options(truncate_prompt_tokens=params.truncate_prompt_tokens),
        model=params.model,
        request_id=request.litellm_call_id,
        context=(places, params),
    )


def render(answer: Answer) -> GuardrailResponse:
    """The reason names the highest of the flagged scores."""
    places, params = answer.call.context
    thresholds = thresholds_of(answer, params.threshold)
    findings = [
        (score, label, place, threshold)
        for place, prediction in zip(places, answer.predictions, strict=True)
        for label, score, threshold, is_flagged in zip(
            answer.labels,
            prediction.probs,
            thresholds,
            flagged_labels(prediction, answer.labels, thresholds, params.safe_labels),
            strict=True,
        )
        if is_flagged
    ]
    if not findings:
        return GuardrailResponse("NONE")
    score, label, place, threshold = max(findings)
    return GuardrailResponse(
        "BLOCKED", f"{label}: score {score:.4f} at threshold {threshold:g}, in text {place} of the request."
    )


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(error.message)


DIALECT = Dialect(
    name="guardrail",
    paths=("/beta/litellm_basic_guardrail_api",),
    parse=parse,
    check=check_flags,
    render=render,
    render_error=render_error,
    request=GuardrailRequest,
    response=GuardrailResponse,
    error=ErrorResponse,
    summary="Whether texts may pass (LiteLLM generic guardrail)",
    example={"texts": ["You broke everything, you fool."], "input_type": "request"},
    example_labels=("safe", "toxic"),
)

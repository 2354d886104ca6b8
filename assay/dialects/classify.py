"""POST /v1/classify as the SGLang document and vLLM speak it: one label and its probabilities for each prompt.

Knows nothing of the model: whether a token id exists or a text is too long, the engine says.
"""

from typing import Any, Literal

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.errors import AssayError, RequestError
from assay.sequence import ChatPrompt, Options, Prediction, Prompt, TextPrompt, TokenPrompt


class PairInput(msgspec.Struct):
    """A text, or a pair that is read together. Gateways drop unknown fields of a request, but not of its input."""

    text: str
    text_pair: str | None = None


Input = str | PairInput | list[str | int | list[int] | PairInput]


class ClassifyRequest(msgspec.Struct):
    """Unknown fields are ignored, as both peers do. `activation` and `softmax` are older names of `use_activation`."""

    input: Input | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    user: str | None = None
    rid: str | list[str] | None = None
    request_id: str | None = None
    priority: int = 0
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None


class Classification(msgspec.Struct):
    index: int
    label: str
    probs: list[float]
    num_classes: int


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
    request = decode(incoming.body, ClassifyRequest)
    return Call(
        prompts=_prompts(request),
        options=Options(
            truncate_prompt_tokens=request.truncate_prompt_tokens,
            truncation_side=request.truncation_side,
            add_special_tokens=request.add_special_tokens,
            activation="none" if _wants_raw(request) else None,
            priority=request.priority,
        ),
        model=request.model or None,
        request_id=request.request_id or (request.rid if isinstance(request.rid, str) else None) or None,
    )


def _wants_raw(request: ClassifyRequest) -> bool:
    """The newest name that is given decides."""
    for flag in (request.use_activation, request.activation, request.softmax):
        if flag is not None:
            return not flag
    return False


def _prompts(request: ClassifyRequest) -> list[Prompt]:
    if request.messages is None:
        return _inputs(request.input)
    if request.input is not None:
        raise RequestError("Both `input` and `messages` are given; send one.", param="messages")
    if not request.messages:
        raise RequestError("`messages` is empty; a conversation needs at least one message.", param="messages")
    if request.chat_template is not None:
        raise RequestError(
            "`chat_template` is not accepted from requests; the server's --chat-template sets one.", "chat_template"
        )
    if request.continue_final_message and request.add_generation_prompt:
        raise RequestError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    return [
        ChatPrompt(
            request.messages,
            request.add_generation_prompt,
            request.continue_final_message,
            request.chat_template_kwargs or {},
        )
    ]


def _inputs(value: Input | None) -> list[Prompt]:
    if value is None:
        raise RequestError("Missing required field `input`: a string, strings, token ids, or lists of them.", "input")
    if isinstance(value, str | PairInput):
        return [_text(value, "Input")]
    if not value:
        raise RequestError("You must pass at least one prompt.", param="input")
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return [TokenPrompt(value)]  # type: ignore[arg-type]
    if int in kinds or (list in kinds and len(kinds) > 1):
        raise RequestError("`input` mixes strings, token ids or lists; send one kind.", param="input")
    return [
        _tokens(item, index) if isinstance(item, list) else _text(item, f"Input at index {index}")  # type: ignore[arg-type]
        for index, item in enumerate(value)
    ]


def _text(item: str | PairInput, name: str) -> TextPrompt:
    """The first text must say something; the second may be empty."""
    text, pair = (item, None) if isinstance(item, str) else (item.text, item.text_pair)
    if not text:
        raise RequestError(f"{name} cannot be empty", param="input")
    if text.isspace():
        raise RequestError(f"{name} cannot be empty or whitespace only", param="input")
    return TextPrompt(text, pair)


def _tokens(token_ids: list[int], index: int) -> TokenPrompt:
    if not token_ids:
        raise RequestError(f"Input at index {index} cannot be empty", param="input")
    return TokenPrompt(token_ids)


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
    return Classification(index, prediction.label, prediction.probs, len(prediction.probs))


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(
        error=error.message, type=error.type, code=error.status, message=error.message, param=error.param
    )


DIALECT = Dialect(
    name="classify",
    paths=("/v1/classify", "/classify"),
    keys=frozenset({"input", "messages"}),
    parse=parse,
    render=render,
    render_error=render_error,
)

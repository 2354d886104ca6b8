"""SGLang's POST /v1/score: `query` joined with each of `items`. Knows nothing of the model but its labels."""

from typing import Literal

import msgspec
from msgspec.structs import replace

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.dialects.inputs import OptionFields, input_prompts
from assay.errors import AssayError, RequestError


class ItemsRequest(OptionFields, kw_only=True):
    """query, items: both texts, or both token ids. label_token_ids: for language models; a classifier has none."""

    query: str | list[int]
    items: str | list[str | list[int]]
    label_token_ids: list[int] | None = None
    apply_softmax: bool = False
    item_first: bool = False


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ItemsResponse(msgspec.Struct):
    """scores: for each item one per label, in the model's order: logits, or probabilities with `apply_softmax`."""

    scores: list[list[float]]
    model: str
    usage: Usage
    object: Literal["scoring"] = "scoring"


class ErrorResponse(msgspec.Struct):
    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int


def parse(incoming: Incoming) -> Call:
    request = decode(incoming.body, ItemsRequest)
    if request.label_token_ids is not None:
        raise RequestError(
            "`label_token_ids` asks a language model for the probabilities of tokens; the models here have labels. "
            "Leave it out to get one score for each label.",
            param="label_token_ids",
        )
    joined = _joined(request)
    call = request.call(input_prompts(joined, "items") if joined else [])  # type: ignore[arg-type]
    return replace(call, options=replace(call.options, activation="softmax" if request.apply_softmax else "none"))


def _joined(request: ItemsRequest) -> list[str | list[int]]:
    """Query and item without anything between them, as SGLang does; not a pair."""
    query, items = request.query, [request.items] if isinstance(request.items, str) else request.items
    if any(type(item) is not type(query) for item in items):
        raise RequestError("`query` and `items` must both be texts, or both token ids.", param="items")
    return [item + query if request.item_first else query + item for item in items]  # type: ignore[operator]


def render(answer: Answer) -> ItemsResponse:
    tokens = sum(prediction.num_tokens for prediction in answer.predictions)
    return ItemsResponse([prediction.probs for prediction in answer.predictions], answer.model, Usage(tokens, tokens))


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse("error", error.message, error.type, error.param, error.status)


DIALECT = Dialect(
    name="items",
    paths=("/v1/score", "/invocations"),
    keys=frozenset({"query"}),
    parse=parse,
    render=render,
    render_error=render_error,
    request=ItemsRequest,
    response=ItemsResponse,
    error=ErrorResponse,
    summary="A query joined with each item, scored by every label (SGLang)",
    example={"query": "Where is coffee good? ", "items": ["The new café is great.", "The update broke everything."]},
)

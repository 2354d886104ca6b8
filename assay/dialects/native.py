"""SGLang's own requests, as reward clients send them: POST or PUT /classify with `text` or `input_ids`, and
POST /v1/embeddings in its reward mode. Both answer with raw logits, called an embedding. Knows nothing of the model.
"""

import base64
import struct
from typing import Literal

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.dialects.inputs import InputFields, OptionFields, PairInput, input_prompts
from assay.errors import AssayError, RequestError
from assay.sequence import Prompt

# --- /classify with `text` or `input_ids` ---


class NativeRequest(OptionFields, kw_only=True):
    """text: a text, or a list of texts and [a, b] pairs. input_ids: one sequence, or a list of them."""

    text: str | list[str | list[str]] | None = None
    input_ids: list[int | list[int]] | None = None


class MetaInfo(msgspec.Struct):
    """e2e_latency: seconds since the request came, the same for every item of a batch."""

    id: str
    finish_reason: None
    prompt_tokens: int
    weight_version: str
    e2e_latency: float


class NativeItem(msgspec.Struct):
    embedding: list[float]
    meta_info: MetaInfo


class NativeErrorMessage(msgspec.Struct):
    message: str


class NativeError(msgspec.Struct):
    error: NativeErrorMessage


def parse(incoming: Incoming) -> Call:
    """The call's context: None for a single prompt, else the id of each item, or [] where the caller gave none."""
    request = decode(incoming.body, NativeRequest)
    prompts = _native_prompts(request)
    single = isinstance(request.text, str) or (request.input_ids is not None and type(request.input_ids[0]) is int)
    ids = request.rid if isinstance(request.rid, list) else []
    if ids and len(ids) != len(prompts):
        raise RequestError(f"`rid` has {len(ids)} ids for {len(prompts)} prompts.", param="rid")
    if single:
        request.rid = ids[0] if ids else request.rid
    return request.call(prompts, context=None if single else ids)


def _native_prompts(request: NativeRequest) -> list[Prompt]:
    if (request.text is None) == (request.input_ids is None):
        raise RequestError("Send either `text` or `input_ids`.", param="text")
    if request.input_ids is not None:
        return input_prompts(request.input_ids, "input_ids")  # type: ignore[arg-type]
    if isinstance(request.text, str):
        return input_prompts(request.text, "text")
    return input_prompts([_one_or_pair(item, index) for index, item in enumerate(request.text or [])], "text")


def _one_or_pair(item: str | list[str], index: int) -> str | PairInput:
    if isinstance(item, str):
        return item
    if len(item) != 2:
        raise RequestError(f"Input at index {index} is a list of {len(item)} texts; a pair has two.", param="text")
    return PairInput(*item)


def render(answer: Answer) -> NativeItem | list[NativeItem]:
    ids: list[str] | None = answer.call.context
    if ids is None:
        return _native_item(answer, 0, answer.request_id)
    numbers = range(len(answer.predictions))
    return [_native_item(answer, i, ids[i] if ids else f"{answer.request_id}_{i}") for i in numbers]


def _native_item(answer: Answer, index: int, item_id: str) -> NativeItem:
    prediction = answer.predictions[index]
    return NativeItem(
        prediction.logits, MetaInfo(item_id, None, prediction.num_tokens, "default", round(answer.seconds, 6))
    )


def render_error(error: AssayError) -> NativeError:
    return NativeError(NativeErrorMessage(error.message))


DIALECT = Dialect(
    name="native",
    paths=("/classify", "/invocations"),
    keys=frozenset({"text", "input_ids"}),
    methods=("POST", "PUT"),
    parse=parse,
    render=render,
    render_error=render_error,
    request=NativeRequest,
    response=NativeItem | list[NativeItem],
    error=NativeError,
    summary="Raw logits of texts or token ids (SGLang native, verl)",
    example={"text": "Loved the new café—coffee was great."},
)


# --- /v1/embeddings ---


class EmbeddingsRequest(InputFields, kw_only=True):
    encoding_format: Literal["float", "base64"] | None = None


class Embedding(msgspec.Struct):
    """embedding: raw logits; as base64 of little-endian float32 where the caller asks so, as OpenAI's client does."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class EmbeddingsUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(msgspec.Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class EmbeddingsError(msgspec.Struct):
    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int


def parse_embeddings(incoming: Incoming) -> Call:
    request = decode(incoming.body, EmbeddingsRequest)
    return request.call(request.prompts(), context=request.encoding_format == "base64")


def render_embeddings(answer: Answer) -> EmbeddingsResponse:
    tokens = sum(prediction.num_tokens for prediction in answer.predictions)
    return EmbeddingsResponse(
        object="list",
        data=[
            Embedding("embedding", _base64(p.logits) if answer.call.context else p.logits, index)
            for index, p in enumerate(answer.predictions)
        ],
        model=answer.model,
        usage=EmbeddingsUsage(tokens, tokens),
    )


def _base64(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def render_embeddings_error(error: AssayError) -> EmbeddingsError:
    return EmbeddingsError("error", error.message, error.type, error.param, error.status)


EMBEDDINGS = Dialect(
    name="embeddings",
    paths=("/v1/embeddings",),
    parse=parse_embeddings,
    render=render_embeddings,
    render_error=render_embeddings_error,
    request=EmbeddingsRequest,
    response=EmbeddingsResponse,
    error=EmbeddingsError,
    summary="Raw logits as embeddings (SGLang reward mode)",
    example={"input": "Loved the new café—coffee was great."},
)

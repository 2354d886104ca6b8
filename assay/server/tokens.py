"""POST /tokenize and /detokenize, as vLLM and SGLang have them: the ids that a prompt is scored as, and text of ids.

Ids come from the tokenizer that scores, in its threads: chat template, special tokens and a reranker's pairs included.
Counting refuses no length. Knows no scores.
"""

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from assay.dialects.dialect import decode
from assay.dialects.inputs import InputFields, PairInput
from assay.engine.encoder import PromptEncoder
from assay.errors import (
    MediaTypeError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
    SlowRequestError,
    TooLargeError,
    UnavailableError,
)
from assay.sequence import Options, Prompt, TextPrompt
from assay.server.body import json_response, read_body
from assay.server.endpoint import Endpoint
from assay.server.service import Service

_BYTES_PER_TOKEN = 4  # stands for a body's tokens until they are counted

Texts = str | PairInput | list[str | PairInput]


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """One of `prompt`, its other name `text`, and `messages`. Other than at vLLM, a conversation is rendered as
    /v1/classify does it, without the opening of an answer unless that is asked for.
    """

    model: str | None = None
    prompt: Texts | None = None
    text: Texts | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = False

    def prompts(self) -> list[Prompt]:
        given = [name for name in ("prompt", "text", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise RequestError(f"Send one of `prompt`, `text` and `messages`; there is {found}.", param="prompt")
        if self.messages is not None:
            return InputFields(
                messages=self.messages,
                add_generation_prompt=self.add_generation_prompt,
                continue_final_message=self.continue_final_message,
                chat_template=self.chat_template,
                chat_template_kwargs=self.chat_template_kwargs,
            ).prompts()
        texts = self.texts()
        return [_prompt(item) for item in (texts if isinstance(texts, list) else [texts])]

    def texts(self) -> Texts:
        return self.prompt if self.prompt is not None else self.text or ""


def _prompt(item: str | PairInput) -> Prompt:
    """Empty ones too: they are counted, not scored."""
    return TextPrompt(item) if isinstance(item, str) else TextPrompt(item.text, item.text_pair)


class TokenizeResponse(msgspec.Struct):
    """count, tokens, token_strs: of each prompt, where the request had a list."""

    count: int | list[int]
    max_model_len: int
    tokens: list[int | list[int]]
    token_strs: list[str | list[str]] | None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """tokens: the ids of one text, or lists of them. Special tokens are left in unless the request says so."""

    tokens: list[int | list[int]]
    model: str | None = None
    skip_special_tokens: bool = False


class DetokenizeResponse(msgspec.Struct):
    """prompt: as vLLM's callers read it; text: as SGLang's."""

    prompt: str | list[str]
    text: str | list[str]


async def _tokenize(service: Service, request: Request) -> Response:
    body = await read_body(request.scope, request.receive, service.config)
    asked = decode(body, TokenizeRequest)
    engine = service.serving(asked.model).ready()
    prompts = asked.prompts()
    _check_count(service, len(prompts), "prompt")
    options = Options(add_special_tokens=asked.add_special_tokens)
    work = partial(_tokens, prompts=prompts, options=options, with_strings=bool(asked.return_token_strs))
    tokens, strings = await engine.with_tokenizer(work, _cost(body, engine.max_model_len))
    counts = [len(row) for row in tokens]
    if isinstance(asked.texts(), list):
        written: list[str | list[str]] | None = None if strings is None else [*strings]
        return json_response(TokenizeResponse(counts, engine.max_model_len, [*tokens], written))
    written = None if strings is None else [*strings[0]]
    return json_response(TokenizeResponse(counts[0], engine.max_model_len, [*tokens[0]], written))


def _tokens(
    pool: PromptEncoder, prompts: list[Prompt], options: Options, with_strings: bool
) -> tuple[list[list[int]], list[list[str]] | None]:
    rows = [sequence.token_ids for sequence in pool.encode(prompts, options, any_length=True)]
    return rows, [pool.token_strings(row) for row in rows] if with_strings else None


async def _detokenize(service: Service, request: Request) -> Response:
    body = await read_body(request.scope, request.receive, service.config)
    asked = decode(body, DetokenizeRequest)
    engine = service.serving(asked.model).ready()
    rows = [item for item in asked.tokens if isinstance(item, list)]
    ids = [item for item in asked.tokens if not isinstance(item, list)]
    if rows and ids:
        raise RequestError("`tokens` mixes ids and lists; send the ids of one text, or lists of them.", param="tokens")
    _check_count(service, len(rows), "tokens")
    work = partial(_texts, rows=rows or [ids], skip_special_tokens=asked.skip_special_tokens)
    texts = await engine.with_tokenizer(work, _cost(body, engine.max_model_len))
    answer = texts if rows else texts[0]
    return json_response(DetokenizeResponse(answer, answer))


def _texts(pool: PromptEncoder, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
    return [pool.text(row, skip_special_tokens) for row in rows]


def _check_count(service: Service, count: int, param: str) -> None:
    limit = service.config.max_request_inputs
    if count > limit:
        raise TooLargeError(f"The request has {count} inputs; at most {limit} are allowed. Split it.", param=param)


def _cost(body: bytes, max_model_len: int) -> int:
    """Admitted as so many tokens; never more than one text that is scored, so that what is long can be counted."""
    return min(len(body) // _BYTES_PER_TOKEN + 1, max_model_len)


_REFUSALS = (
    RequestError,
    ModelNotFoundError,
    SlowRequestError,
    TooLargeError,
    MediaTypeError,
    QueueFullError,
    UnavailableError,
)

ENDPOINTS = (
    Endpoint(
        ("/tokenize", "/v1/tokenize"),
        _tokenize,
        "The token ids that a prompt is scored as, and how many",
        TokenizeResponse,
        methods=("POST",),
        request=TokenizeRequest,
        example={"prompt": "Loved the new café—coffee was great.", "return_token_strs": True},
        refusals=_REFUSALS,
    ),
    Endpoint(
        ("/detokenize", "/v1/detokenize"),
        _detokenize,
        "The text of token ids",
        DetokenizeResponse,
        methods=("POST",),
        request=DetokenizeRequest,
        example={"tokens": [5, 6, 7]},
        refusals=_REFUSALS,
    ),
)

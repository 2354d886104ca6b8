"""What a dialect is: paths, parse, render, and the shape of its errors. Knows no particular caller and no server."""

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from assay.errors import AssayError, RequestError
from assay.sequence import Options, Prediction, Prompt

Wire = TypeVar("Wire")


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks of the engine. `model` None is the served one; `request_id` is the caller's own, if any."""

    prompts: list[Prompt]
    options: Options
    model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a dialect renders. `model` is the name served; `created` is Unix time in seconds."""

    predictions: list[Prediction]
    model: str
    request_id: str
    created: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """One caller's language: two pure functions, the paths that speak it, and its errors."""

    name: str
    paths: tuple[str, ...]
    parse: Callable[[bytes], Call]
    render: Callable[[Answer], Any]
    render_error: Callable[[AssayError], Any]


def decode(body: bytes, wire: type[Wire]) -> Wire:
    """The JSON body as a wire type. Raises RequestError that says where and what was expected."""
    try:
        return msgspec.json.decode(body, type=wire)
    except msgspec.ValidationError as error:
        raise RequestError(f"Invalid request: {error}", param=_field(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestError(f"The request body is not valid JSON: {_why_not_json(body)}") from None


def _field(message: str) -> str | None:
    """`… at `$.input[1]`` → `input`; a missing required field `input` → `input`."""
    for mark in ("`$.", "required field `"):
        if mark in message:
            return message.rpartition(mark)[2].rstrip("`").partition("[")[0].partition(".")[0]
    return None


def _why_not_json(body: bytes) -> str:
    """The standard library says line and column; what it lets through is the two things JSON itself forbids."""
    if not body.strip():
        return "it is empty."
    if body.startswith(codecs.BOM_UTF8):
        return "it starts with a byte order mark; send plain UTF-8."
    try:
        json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        return "it is not UTF-8."
    except RecursionError:
        return "it is nested too deeply."
    except ValueError as error:
        return f"{error}."
    return "it holds a lone surrogate escape (\\ud800 to \\udfff), NaN or Infinity."

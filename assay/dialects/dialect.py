"""What a dialect is: paths, parse, render, and the shape of its errors. Knows no particular caller and no server."""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from assay.config import Activation
from assay.errors import AssayError, RequestError
from assay.sequence import Options, Prediction, Prompt

Wire = TypeVar("Wire")


class Incoming(msgspec.Struct, frozen=True):
    """A request as a dialect sees it: its body, the names in its path (`{model}`), its headers as they came, with
    names in lower case.
    """

    body: bytes
    path: Mapping[str, str] = msgspec.field(default_factory=dict)
    headers: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)


class Call(msgspec.Struct, frozen=True):
    """What a request asks of the engine.

    model: the name of a served one; None is the default. any_model: a name that is not served means the default too.
    request_id: the caller's own, if any.
    context: whatever `render` must know of the request, e.g. whether it asked one text or a list of one.
    """

    prompts: list[Prompt]
    options: Options
    model: str | None = None
    request_id: str | None = None
    context: Any = None
    any_model: bool = False


class ModelFacts(msgspec.Struct, frozen=True):
    """What a dialect may know of the model before it is asked.

    labels: in the order of `probs`. activation: the one that this call's `probs` will have been through.
    """

    name: str
    labels: tuple[str, ...]
    activation: Activation


class Answer(msgspec.Struct, frozen=True):
    """What a dialect renders.

    labels: in the order of `probs`. model: the name served. created: Unix time in seconds. seconds: since the request
    came. thresholds: from which probability each label is flagged, where the model's calibration says so.
    """

    call: Call
    predictions: list[Prediction]
    labels: tuple[str, ...]
    model: str
    request_id: str
    created: int
    seconds: float
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One caller's language: two pure functions, the paths that speak it, and its errors.

    request: the wire type that `parse` decodes. response, error: the types that the renderers give; a union stands for
        any of its arms. summary: one line. example: a body. The page at /docs is made of these.
    example_labels: those of a model that can answer `example`.
    keys: where several dialects share a path, the body's top-level keys that mark this one. The first in the table
        whose key is present answers; the path's first dialect where none is.
    check: raises RequestError for what this model cannot answer, before anything is computed.
    headers: further headers of an answer. status: an error's HTTP status, where the caller expects another than ours.
    prefixes: of paths that only its callers ask for; those that do not exist are refused in its shape.
    """

    name: str
    paths: tuple[str, ...]
    parse: Callable[[Incoming], Call]
    render: Callable[[Answer], Any]
    render_error: Callable[[AssayError], Any]
    request: Any
    response: Any
    error: Any
    summary: str
    example: dict[str, Any]
    keys: frozenset[str] = frozenset()
    methods: tuple[str, ...] = ("POST",)
    check: Callable[[Call, ModelFacts], None] | None = None
    headers: Callable[[Answer], dict[str, str]] = lambda answer: {}
    status: Callable[[AssayError], int] = lambda error: error.status
    prefixes: tuple[str, ...] = ()
    example_labels: tuple[str, ...] = ("negative", "positive")


def choose(dialects: Sequence[Dialect], body: bytes) -> Dialect:
    """The dialect of a body, among those that share its path."""
    if len(dialects) == 1:
        return dialects[0]
    keys = _top_level_keys(body)
    return next((dialect for dialect in dialects if dialect.keys & keys), dialects[0])


def _top_level_keys(body: bytes) -> set[str]:
    """The keys of a JSON object; none where the body is anything else, which the dialect will say."""
    try:
        return set(msgspec.json.decode(body, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return set()


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

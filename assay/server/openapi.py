"""The OpenAPI 3.1 document, made from the tables that the routes are made of and the wire types that they decode and
encode. Examples of answers are rendered by the dialects themselves. Knows no caller's shapes.
"""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from math import exp
from types import UnionType
from typing import Any, get_args

import msgspec
from starlette.convertors import CONVERTOR_TYPES

from assay import __version__
from assay.dialects import DIALECTS, PATHS, spoken_at
from assay.dialects.dialect import Answer, Call, Dialect, Incoming
from assay.dialects.kserve import VERSION
from assay.errors import (
    AssayError,
    ContextLengthError,
    DeadlineError,
    InternalError,
    MediaTypeError,
    MisdirectedError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    QueueFullError,
    RequestError,
    SlowRequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from assay.sequence import Prediction
from assay.server.auth import OPEN_PATHS
from assay.server.endpoint import Endpoint
from assay.server.observation import TIMING_HEADERS

Object = dict[str, Any]

# One of each error that a scored request can end in; the dialects say with which status, and in which shape.
_REFUSALS: tuple[AssayError, ...] = (
    RequestError("Input cannot be empty", param="input"),
    ContextLengthError("This model's maximum context length is 512 tokens; the prompt has 600.", param="input"),
    UnauthorizedError("Unauthorized"),
    ModelNotFoundError("The model `another` does not exist.", param="model"),
    SlowRequestError("The request body was not complete within 30 s; 512 bytes of it had come."),
    TooLargeError("The request has 5000 inputs; at most 1024 are allowed. Split it.", param="input"),
    MediaTypeError("The content type is 'text/plain'; send application/json."),
    MisdirectedError("The request is for the host 'page.example', and this server answers for others."),
    QueueFullError("Too many tokens are waiting; try again in a moment."),
    InternalError("Internal server error; the server's log has the details."),
    OverloadedError("Too many tokens are waiting; try again in a moment."),
    UnavailableError("The model is still loading; try again in a moment."),
    DeadlineError("The deadline passed before the request was answered."),
)
_NO_PATH = NotFoundError("There is no such path here; POST /v1/classify, or GET /v1/models.")
_REQUEST_ID = {"description": "The caller's own id, echoed; a new one where none came.", "schema": {"type": "string"}}
_TIMEOUT = {
    "description": "Milliseconds that the request may take; past them it ends in an error, and is not computed.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 10**12 - 1},
}
_SECONDS = {"description": "Seconds to wait before another try.", "schema": {"type": "integer", "minimum": 0}}
_CHALLENGE = {"description": "The scheme that is asked for: Bearer.", "schema": {"type": "string"}}
_HEADERS = ((UnauthorizedError, "WWW-Authenticate", _CHALLENGE), (QueueFullError, "Retry-After", _SECONDS))


def openapi_document(model: str, endpoints: Sequence[Endpoint]) -> Object:
    """The whole document: the dialects, and these endpoints. model: the name served, for paths that hold one."""
    wires = list(dict.fromkeys(arm for wire in _wires(endpoints) for arm in _arms(wire)))
    schemas, components = msgspec.json.schema_components(wires, ref_template="#/components/schemas/{name}")
    writer = _Writer(dict(zip(wires, schemas, strict=True)), model)
    paths: dict[str, Object] = {}
    for path, dialects in PATHS.items():
        for method in sorted({method for dialect in dialects for method in dialect.methods}):
            paths.setdefault(_plain(path), {})[method.lower()] = writer.scoring(path, method, dialects)
    for endpoint in endpoints:
        for path in endpoint.paths:
            for method in endpoint.methods:
                paths.setdefault(_plain(path), {})[method.lower()] = writer.status(path, method, endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "assay",
            "version": __version__,
            "summary": "Text classifiers, reward models and rerankers, in every client's dialect.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}, {"api_key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": {"X-Request-Id": _REQUEST_ID},
            "parameters": {
                "X-Request-Id": {"name": "X-Request-Id", "in": "header", **_REQUEST_ID},
                "X-Request-Timeout-Ms": {"name": "X-Request-Timeout-Ms", "in": "header", **_TIMEOUT},
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "Where the server has --api-key."},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
            },
        },
    }


def _wires(endpoints: Sequence[Endpoint]) -> Iterable[Any]:
    for dialect in DIALECTS:
        yield from (dialect.request, dialect.response, dialect.error)
    for endpoint in endpoints:
        yield from (endpoint.request, endpoint.error, *endpoint.responses.values())
        if not isinstance(endpoint.response, str):
            yield endpoint.response


def _arms(wire: Any) -> tuple[Any, ...]:
    """The types of a union, one by one: msgspec decodes no union of two kinds of lists, but a dialect may answer so."""
    if wire is None:
        return ()
    return get_args(wire) if isinstance(wire, UnionType) else (wire,)


def _plain(path: str) -> str:
    """`/v2/models/{model:path}/infer` → `/v2/models/{model}/infer`."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


class _Writer:
    """Writes operations. schemas: wire type → its schema, mostly a reference."""

    def __init__(self, schemas: dict[Any, Object], model: str) -> None:
        self._schemas = schemas
        self._model = model
        self._names = {"model": model, "version": VERSION}  # what stands in paths

    def scoring(self, path: str, method: str, dialects: Sequence[Dialect]) -> Object:
        """A path's dialects in one operation: the body's keys tell them apart."""
        called = [(dialect, _call(dialect, self._model)) for dialect in dialects]
        answers = [(dialect, _answer(dialect, call, self._model)) for dialect, call in called]
        content = self._content([dialect.request for dialect in dialects])
        content["examples"] = {d.name: {"summary": d.summary, "value": d.example} for d in dialects}
        answered = self._content([dialect.response for dialect in dialects])
        answered["examples"] = {dialect.name: {"value": _built(dialect.render(answer))} for dialect, answer in answers}
        errors = [(dialect, error) for dialect in dialects for error in _REFUSALS if _can_end_in(dialect, path, error)]
        headers = sorted({*TIMING_HEADERS, *(name for dialect, answer in answers for name in dialect.headers(answer))})
        operation = self._operation(path, method, dialects[0].name)
        operation["parameters"].append({"$ref": "#/components/parameters/X-Request-Timeout-Ms"})
        return operation | {
            "summary": dialects[0].summary + (f"; or {len(dialects) - 1} other bodies" if len(dialects) > 1 else ""),
            "description": _choice(dialects),
            "requestBody": {"required": True, "content": {"application/json": content}},
            "responses": {
                "200": _response(200, answered, {name: {"schema": {"type": "string"}} for name in headers}),
                **self._refusals(path, errors),
            },
        }

    def status(self, path: str, method: str, endpoint: Endpoint) -> Object:
        operation = self._operation(path, method, "server") | {"summary": endpoint.summary}
        operation["parameters"] += [
            {"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}
            for name, meaning in endpoint.query.items()
        ]
        if endpoint.request is not None:
            content = self._content([endpoint.request]) | {"example": endpoint.example}
            operation["requestBody"] = {"required": True, "content": {"application/json": content}}
        errors: list[tuple[Dialect | Endpoint, AssayError]] = [
            (endpoint, error) for error in _REFUSALS if type(error) in endpoint.refusals
        ]
        kinds: tuple[type[AssayError], ...] = (MisdirectedError, UnauthorizedError)
        if path in OPEN_PATHS:
            operation["security"] = []
            kinds = (MisdirectedError,)
        errors += [(spoken_at(path), error) for error in _REFUSALS if isinstance(error, kinds)]
        operation["responses"] = {
            "200": _response(200, {"schema": {"type": "string"}}, media_type=endpoint.response)
            if isinstance(endpoint.response, str)
            else _response(200, self._content([endpoint.response])),
            **{str(code): _response(code, self._content([wire])) for code, wire in endpoint.responses.items()},
        }
        for code, refusal in self._refusals(path, errors).items():
            operation["responses"].setdefault(code, refusal)
        return operation

    def _operation(self, path: str, method: str, tag: str) -> Object:
        named: list[Object] = [
            {"name": name, "in": "path", "required": True, "schema": _fitting(kind), "example": self._names[name]}
            for name, kind in re.findall(r"{(\w+):?(\w*)}", path)
        ]
        return {
            "operationId": method.lower() + re.sub(r"\W+", "_", _plain(path)),
            "tags": [tag],
            "parameters": [*named, {"$ref": "#/components/parameters/X-Request-Id"}],
        }

    def _content(self, wires: Iterable[Any]) -> Object:
        schemas = [self._schemas[arm] for arm in dict.fromkeys(arm for wire in wires for arm in _arms(wire))]
        return {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}

    def _refusals(self, path: str, errors: Sequence[tuple[Dialect | Endpoint, AssayError]]) -> Object:
        """Status → response, in the shapes of all who answer with that status; the router is one where it may not
        take a name.
        """
        if "{" in path:
            errors = [*errors, (spoken_at(re.sub(r"{[^}]*}", "…", path)), _NO_PATH)]
        responses = {}
        for code in sorted({source.status(error) for source, error in errors}):
            here = [(source, error) for source, error in errors if source.status(error) == code]
            content = self._content([source.error for source, _ in here])
            content["examples"] = {
                "_".join((getattr(source, "name", "server"), error.type)): {"value": _built(source.render_error(error))}
                for source, error in here
            }
            headers = {name: text for _, error in here for kind, name, text in _HEADERS if isinstance(error, kind)}
            responses[str(code)] = _response(code, content, headers)
        return responses


def _response(
    code: int, content: Object, headers: Object | None = None, media_type: str = "application/json"
) -> Object:
    return {
        "description": HTTPStatus(code).phrase,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}, **(headers or {})},
        "content": {media_type: content},
    }


def _fitting(kind: str) -> Object:
    """What the router takes for a name in a path; only `path` takes slashes, and neither takes line breaks."""
    return {"type": "string", "pattern": f"^{CONVERTOR_TYPES[kind or 'str'].regex}$"}


def _choice(dialects: Sequence[Dialect]) -> str:
    """Which body is whose, where several are taken."""
    if len(dialects) == 1:
        return ""
    lines = [f"- {', '.join(f'`{key}`' for key in sorted(d.keys))}: {d.summary}" for d in dialects]
    return "The body's keys choose; where none of these is there, the first.\n\n" + "\n".join(lines)


def _can_end_in(dialect: Dialect, path: str, error: AssayError) -> bool:
    """What is refused before the body is read has the shape of the path's first dialect; and whoever cannot name a
    model is not told that there is none of that name.
    """
    if isinstance(error, UnauthorizedError | MediaTypeError | SlowRequestError | MisdirectedError):
        return dialect is PATHS[path][0]
    if isinstance(error, ModelNotFoundError):
        return _names_a_model(dialect, path)
    return True


def _names_a_model(dialect: Dialect, path: str) -> bool:
    """In the path, or anywhere in the body; unless whatever name is given is taken for the model served."""
    named = b'"model":' in msgspec.json.encode(msgspec.json.schema(dialect.request))
    return "{model" in path or (named and not _call(dialect, "another").any_model)


def _call(dialect: Dialect, model: str) -> Call:
    body = msgspec.json.encode(dialect.example | {"model": model})
    return dialect.parse(Incoming(body, {"model": model}))


def _answer(dialect: Dialect, call: Call, model: str) -> Answer:
    """Of a model that has the dialect's `example_labels` and is sure of the last."""
    labels = dialect.example_labels
    logits = [-2.25] * (len(labels) - 1) + [2.25]
    total = sum(map(exp, logits)) if len(labels) > 1 else 1 + exp(logits[0])
    probs = logits if call.options.activation == "none" else [round(exp(logit) / total, 4) for logit in logits]
    predictions = [Prediction(labels[-1], probs, logits, num_tokens=12) for _ in call.prompts]
    return Answer(call, predictions, labels, model, request_id="0f8fad5bd9cb469fa165", created=1795476680, seconds=0.02)


def _built(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True)

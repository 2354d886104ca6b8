"""HTTP: routes as a list, short handlers, errors turned into answers in one place. Knows no dialect's shapes."""

import asyncio
import logging
import math
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from assay.dialects import PATHS, spoken_at
from assay.dialects.dialect import Answer, Dialect, Incoming, ModelFacts, choose
from assay.errors import (
    AssayError,
    InternalError,
    MethodError,
    NotFoundError,
    QueueFullError,
    RequestError,
    TooLargeError,
)
from assay.server.access_log import AccessLog
from assay.server.auth import authentication
from assay.server.body import json_response, read_body
from assay.server.docs_page import docs_routes
from assay.server.exchange import Exchange
from assay.server.hosts import cross_origin, host_check
from assay.server.observation import Observation
from assay.server.observe import Observe, Watcher, open_tracing
from assay.server.service import Service
from assay.server.status import ENDPOINTS

Result = TypeVar("Result")

_log = logging.getLogger("assay.server")

# A dialect's path takes them all, and refuses those that it does not answer in its own shape.
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def build_app(service: Service, on_loaded: Callable[[Exception | None], None] = lambda error: None) -> Starlette:
    """The application. It answers from its first moment (503 while loading); `on_loaded` hears how loading ended.

    Raises ConfigError when traces are asked for and cannot be made.
    """
    config = service.config
    tracing = open_tracing(config)
    access_log = AccessLog(config) if config.access_log != "none" else None
    watchers: list[Watcher] = [one for one in (tracing, access_log) if one is not None]  # the log has the traces' ids

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service, on_loaded))
        try:
            yield
        finally:
            loading.cancel()
            for engine in service.engines:
                await asyncio.to_thread(engine.close)
            for watcher in watchers:
                await asyncio.to_thread(watcher.close)

    routes = [
        *(
            Route(path, partial(_answer, service, dialects), methods=_METHODS)
            for path, dialects in PATHS.items()
            if "{" in path
        ),
        *(route for endpoint in ENDPOINTS for route in endpoint.routes(service)),
        *docs_routes(service, ENDPOINTS),
    ]
    return _App(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Observe, metrics=service.metrics, failed=partial(_failure, service), watchers=watchers),
            *host_check(config, service.metrics),
            *cross_origin(config),
            *authentication(config, service.metrics),
            Middleware(Dialects, service=service),
        ],
        exception_handlers={AssayError: partial(_error, service), HTTPException: partial(_http_error, service)},
    )


class _App(Starlette):
    """starlette's, without its own middleware for errors that nobody caught: `Observe` answers them."""

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = ExceptionMiddleware(self.router, self.exception_handlers)
        for kind, args, options in reversed(self.user_middleware):
            app = kind(app, *args, **options)
        return app


class Dialects:
    """Before the router, which tries route after route: the paths that dialects answer, but for those with names in
    them (`{model}`), lead straight to `_answer`.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        dialects = PATHS.get(scope["path"]) if scope["type"] == "http" else None
        if dialects is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await _answer(self._service, dialects, request)
        except AssayError as error:
            response = await _error(self._service, request, error)
        except HTTPException as error:
            response = await _http_error(self._service, request, error)
        await response(scope, receive, send)


async def _load(service: Service, on_loaded: Callable[[Exception | None], None]) -> None:
    for served in service.models:
        try:
            engine = await _in_daemon(partial(service.load, served))
        except Exception as error:  # an edge: whoever started the server is told, whatever it is
            on_loaded(error)
            return
        engine.start()
        served.engine = engine
    on_loaded(None)


async def _in_daemon(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread that does not hold up the end of the process, as an executor's would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not future.done():
            outcome()

    def run() -> None:
        try:
            result = work()
            outcome = partial(future.set_result, result)
        except Exception as error:
            outcome = partial(future.set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="assay-loader", daemon=True).start()
    return await future


async def _answer(service: Service, dialects: tuple[Dialect, ...], request: Request) -> Response:
    """An edge: whatever goes wrong, the caller is told; of our bugs without details, which the log has."""
    request.scope["dialect"] = dialects[0]
    if not any(request.method in dialect.methods for dialect in dialects):
        allowed = sorted({method for dialect in dialects for method in dialect.methods})
        raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
    try:
        return await _scored(service, dialects, request)
    except AssayError:
        raise
    except Exception as error:
        raise InternalError("Internal server error; the server's log has the details.") from error


async def _scored(service: Service, dialects: tuple[Dialect, ...], request: Request) -> Response:
    """Any dialect's request: body → dialect → parse → check → engine → render."""
    observation: Observation = request.scope["observation"]
    limit = _time_limit(observation.fields.get(b"x-request-timeout-ms"), service.config.request_timeout)
    body = await read_body(request, service.config)
    dialect = request.scope["dialect"] = choose(dialects, body)
    call = dialect.parse(Incoming(body, request.path_params, observation.fields))
    request_id = observation.named(call.request_id)
    observation.prompts = call.prompts
    served = service.serving(call.model, call.any_model)
    observation.model = served.name
    engine = served.ready()
    if len(call.prompts) > service.config.max_request_inputs:
        raise TooLargeError(
            f"The request has {len(call.prompts)} inputs; at most {service.config.max_request_inputs} are allowed. "
            "Split it.",
            param="input",
        )
    activation = call.options.activation or engine.model.activation
    dialect.check(call, ModelFacts(served.name, engine.model.labels, activation))
    observation.scoring = time.monotonic()
    with Exchange.of(request.scope):
        predictions = await engine.classify(call.prompts, call.options, deadline=observation.started + limit)
    observation.predictions = predictions
    answer = Answer(
        call=call,
        predictions=predictions,
        labels=engine.model.labels,
        model=served.name,
        request_id=request_id,
        created=int(time.time()),
        seconds=time.monotonic() - observation.started,
        thresholds=engine.model.thresholds,
    )
    return json_response(dialect.render(answer), 200, dialect.headers(answer), observation.timing_headers())


def _time_limit(header: bytes | None, default: float | None) -> float:
    """Seconds that the request may take: the caller's word, else the operator's, else no end."""
    if header is None:
        return math.inf if default is None else default
    if not (header.isdigit() and len(header) <= 12 and int(header) > 0):
        given = header.decode("latin-1")
        raise RequestError(f"The header x-request-timeout-ms is {given!r}; it must be whole milliseconds, 1 or more.")
    return int(header) / 1000


async def _error(service: Service, request: Request, error: Exception) -> Response:
    """Every refusal and failure, in the shape of the dialect whose path it was; the document's shape elsewhere."""
    assert isinstance(error, AssayError)
    service.metrics.errors.labels(error.type).inc()
    request.scope["error_type"] = error.type
    if isinstance(error, InternalError):
        error = _logged(error, request.scope["observation"].request_id)
    dialect: Dialect = request.scope.get("dialect") or spoken_at(request.url.path)
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
    if "unread" in request.scope:
        headers["connection"] = "close"
    return json_response(dialect.render_error(error), dialect.status(error), headers)


def _logged(error: InternalError, request_id: str) -> InternalError:
    """The same, naming the request for whoever reads the log. There a bug has its type and frames, and no message: that
    may quote a caller's text.
    """
    bug, details = error.__cause__, ""
    if bug is not None:
        details = f"\n{''.join(traceback.format_tb(bug.__traceback__)).rstrip()}\n{type(bug).__name__}"
    _log.error("Request %s failed: %s%s", request_id, error.message, details)
    return InternalError(f"{error.message} (request id {request_id})", error.param)


async def _failure(service: Service, request: Request, error: Exception) -> Response:
    """A bug in a route that is no dialect."""
    failure = InternalError("Internal server error; the server's log has the details.")
    failure.__cause__ = error
    return await _error(service, request, failure)


async def _http_error(service: Service, request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            refusal: AssayError = NotFoundError(f"There is no {path} here; POST /v1/classify, or GET /v1/models.")
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            refusal = MethodError(f"{request.method} is not allowed on {path}; use {allowed}.")
        case _:
            refusal = RequestError(str(error.detail))
    response = await _error(service, request, refusal)
    response.headers.update(error.headers or {})
    return response

"""HTTP: routes as a list, short handlers, errors turned into answers in one place. Knows no dialect's shapes."""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from assay.dialects import PATHS, spoken_at
from assay.dialects.dialect import Answer, Dialect, Incoming, ModelFacts, choose
from assay.errors import (
    AssayError,
    ClientGoneError,
    InternalError,
    MethodError,
    NotFoundError,
    QueueFullError,
    RequestError,
    TooLargeError,
)
from assay.server.auth import authentication
from assay.server.body import json_response, read_body
from assay.server.docs_page import docs_routes
from assay.server.observe import Observe
from assay.server.service import Service
from assay.server.status import ENDPOINTS

Result = TypeVar("Result")

_log = logging.getLogger("assay.server")

_MAX_REQUEST_ID = 128
# A dialect's path takes them all, and refuses those that it does not answer in its own shape.
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def build_app(service: Service, on_loaded: Callable[[Exception | None], None] = lambda error: None) -> Starlette:
    """The application. It answers from its first moment (503 while loading); `on_loaded` hears how loading ended."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service, on_loaded))
        try:
            yield
        finally:
            loading.cancel()
            for engine in service.engines:
                await asyncio.to_thread(engine.close)

    routes = [
        *(Route(path, partial(_answer, service, dialects), methods=_METHODS) for path, dialects in PATHS.items()),
        *(route for endpoint in ENDPOINTS for route in endpoint.routes(service)),
        *docs_routes(service, ENDPOINTS),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Observe, metrics=service.metrics), *authentication(service.config, service.metrics)],
        exception_handlers={
            AssayError: partial(_error, service),
            HTTPException: partial(_http_error, service),
            Exception: partial(_failure, service),
        },
    )


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
    allowed = sorted({method for dialect in dialects for method in dialect.methods})
    if request.method not in allowed:
        raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
    try:
        return await _scored(service, dialects, request)
    except AssayError:
        raise
    except Exception as error:
        _log.exception("A request failed (x-request-id: %s).", request.headers.get("x-request-id"))
        raise InternalError("Internal server error; the server's log has the details.") from error


async def _scored(service: Service, dialects: tuple[Dialect, ...], request: Request) -> Response:
    """Any dialect's request: body → dialect → parse → check → engine → render."""
    started = time.monotonic()
    body = await read_body(request, service.config.max_body_bytes)
    dialect = request.scope["dialect"] = choose(dialects, body)
    call = dialect.parse(Incoming(body, request.path_params, request.headers))
    served = service.serving(call.model, call.any_model)
    engine = served.ready()
    if len(call.prompts) > service.config.max_request_inputs:
        raise TooLargeError(
            f"The request has {len(call.prompts)} inputs; at most {service.config.max_request_inputs} are allowed. "
            "Split it.",
            param="input",
        )
    activation = call.options.activation or engine.model.activation
    dialect.check(call, ModelFacts(served.name, engine.model.labels, activation))
    predictions = await _unless_gone(request, engine.classify(call.prompts, call.options))
    request_id = request.headers.get("x-request-id") or call.request_id or uuid.uuid4().hex
    answer = Answer(
        call=call,
        predictions=predictions,
        labels=engine.model.labels,
        model=served.name,
        request_id=request_id[:_MAX_REQUEST_ID],
        created=int(time.time()),
        seconds=time.monotonic() - started,
    )
    return json_response(dialect.render(answer), headers=dialect.headers(answer))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body is read: the next message can only be a disconnect
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("The client closed the connection.")
    finally:
        task.cancel()
        gone.cancel()


async def _error(service: Service, request: Request, error: Exception) -> Response:
    """Every refusal and failure, in the shape of the dialect whose path it was; the document's shape elsewhere."""
    assert isinstance(error, AssayError)
    service.metrics.errors.labels(error.type).inc()
    dialect: Dialect = request.scope.get("dialect") or spoken_at(request.url.path)
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
    return json_response(dialect.render_error(error), dialect.status(error), headers)


async def _failure(service: Service, request: Request, error: Exception) -> Response:
    """A bug in a route that is no dialect. Starlette hands it on to the server, which logs it."""
    return await _error(service, request, InternalError("Internal server error; the server's log has the details."))


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

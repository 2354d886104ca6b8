"""HTTP: what answers which path, and what each request goes through before. Knows no dialect's shapes.

Layers that only hand a request on return what the next one does: a coroutine around another is entered each time that
the request goes on.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from assay.dialects import PATHS
from assay.errors import AssayError
from assay.server.access_log import AccessLog
from assay.server.auth import authentication
from assay.server.docs_page import docs_routes
from assay.server.failure import Failures
from assay.server.hosts import cross_origin, host_check
from assay.server.observe import Observe, Watcher, open_tracing
from assay.server.scoring import Scoring
from assay.server.service import Service
from assay.server.status import ENDPOINTS

Result = TypeVar("Result")


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

    failures = Failures(service.metrics)
    scoring = {path: Scoring(service, failures, dialects) for path, dialects in PATHS.items()}
    routes = [
        *(Route(path, app) for path, app in scoring.items() if "{" in path),
        *(route for endpoint in ENDPOINTS for route in endpoint.routes(service)),
        *docs_routes(service, ENDPOINTS),
    ]
    return _App(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Forwarded, trusted=config.trusted_proxies),
            Middleware(Observe, metrics=service.metrics, failed=failures.answer, watchers=watchers),
            *host_check(config, service.metrics),
            *cross_origin(config),
            *authentication(config, service.metrics),
            Middleware(Dialects, paths={path: app for path, app in scoring.items() if "{" not in path}),
        ],
        exception_handlers={AssayError: failures.of_route, HTTPException: failures.of_route},
    )


class _App(Starlette):
    """starlette's, without its own middleware for errors that nobody caught: `Observe` answers them."""

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = ExceptionMiddleware(self.router, self.exception_handlers)
        for kind, args, options in reversed(self.user_middleware):
            app = kind(app, *args, **options)
        return app


class Forwarded:
    """A trusted proxy says who asked it, which is who the log and the traces name."""

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self.app = app
        hosts = "*" if "*" in trusted else [*trusted]
        self._proxied: Any = ProxyHeadersMiddleware(app, hosts)  # type: ignore[arg-type]  # starlette's types

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        for name, _ in scope.get("headers", ()):
            if name.startswith(b"x-forwarded-"):
                proxied: Awaitable[None] = self._proxied(scope, receive, send)
                return proxied
        return self.app(scope, receive, send)


class Dialects:
    """Before the router, which tries route after route."""

    def __init__(self, app: ASGIApp, paths: Mapping[str, ASGIApp]) -> None:
        self.app = app
        self._paths = paths

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._paths.get(scope["path"], self.app) if scope["type"] == "http" else self.app
        return app(scope, receive, send)


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

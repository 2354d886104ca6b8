"""Middleware around every request: gives it its id, counts and times it, and tells whoever watches. Knows no body.

The outermost edge: an exception that nobody caught becomes an answer here, and the log never has its message, which may
quote a caller's text.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from traceback import format_tb
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay.config import ServerConfig
from assay.errors import ConfigError, InternalError
from assay.metrics import Metrics
from assay.server.observation import Observation

if TYPE_CHECKING:
    from assay.server.tracing import Tracing

_log = logging.getLogger("assay.server")

CANCELLED = 499  # what is written of a request that was given up unanswered, as nginx has it


class Watcher(Protocol):
    """Hears of each request once it is answered. close: slow; called off the event loop, when no more will come."""

    def __call__(self, observation: Observation) -> None: ...

    def close(self) -> None: ...


class Observe:
    """Plain ASGI, so that nothing is buffered.

    Handlers leave their dialect in `scope["dialect"]` (without one it is `other`), and the type of what they refuse in
    `scope["error_type"]`. failed: makes an exception an answer. watchers: hear of each request once it is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        failed: Callable[[Scope, Exception], Response],
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.app = app
        self.metrics = metrics
        self._failed = failed
        self._watchers = watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        observation = scope["observation"] = Observation.of(scope)

        def send_observed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", observation.request_id.encode("latin-1"))]
                self._end(observation, scope, message["status"])
            return send(message)

        try:
            await self.app(scope, receive, send_observed)
        except Exception as error:  # an edge: a bug is an answer too
            if observation.status:
                raise InternalError("A request failed after its answer had begun.") from None
            response = self._failed(scope, error)
            await response(scope, receive, send_observed)
        finally:
            if not observation.status:
                self._end(observation, scope, CANCELLED)
            self._tell(observation)

    def _tell(self, observation: Observation) -> None:
        """The answer is out: a watcher that fails must not take the connection with it."""
        for watcher in self._watchers:
            try:
                watcher(observation)
            except Exception as error:  # an edge: nobody waits any more, and the log is told
                _log.error("A watcher failed: %s.\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))

    def _end(self, observation: Observation, scope: Scope, status: int) -> None:
        observation.status = status
        observation.error = scope.get("error_type")
        if "dialect" in scope:
            observation.dialect = scope["dialect"].name
        observation.seconds = time.monotonic() - observation.started
        self.metrics.observe_request(observation.dialect, status, observation.seconds)


def open_tracing(config: ServerConfig) -> "Tracing | None":
    """Where the operator wants traces: OpenTelemetry takes 0.2 s to import. Raises ConfigError where it is missing."""
    if config.otlp_endpoint is None:
        return None
    try:
        from assay.server.tracing import Tracing
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'assay[otel]'") from None
    return Tracing(config.otlp_endpoint)

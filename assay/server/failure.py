"""What is answered in place of scores: every refusal and failure, in its caller's shape, counted. Knows no route."""

import logging
import traceback

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from assay.dialects import spoken_at
from assay.dialects.dialect import Dialect
from assay.errors import (
    AssayError,
    InternalError,
    MethodError,
    NotFoundError,
    QueueFullError,
    RequestError,
)
from assay.metrics import Metrics
from assay.server.body import json_response

_log = logging.getLogger("assay.server")


class Failures:
    """metrics: count them by type."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answer(self, scope: Scope, error: Exception) -> Response:
        """In the shape of the dialect whose path it was, or whose callers alone ask for such paths; the document's
        shape elsewhere. Of our bugs no more than that there was one: the log has the rest.
        """
        if isinstance(error, HTTPException):
            return self._http(scope, error)
        if not isinstance(error, AssayError):
            failure = InternalError("Internal server error; the server's log has the details.")
            failure.__cause__ = error
            error = failure
        self._metrics.errors.labels(error.type).inc()
        scope["error_type"] = error.type
        if isinstance(error, InternalError):
            error = _logged(error, scope["observation"].request_id)
        dialect: Dialect = scope.get("dialect") or spoken_at(scope["path"])
        headers = {"retry-after": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
        if "unread" in scope:
            headers["connection"] = "close"
        return json_response(dialect.render_error(error), dialect.status(error), headers)

    async def of_route(self, request: Request, error: Exception) -> Response:
        """What starlette calls."""
        return self.answer(request.scope, error)

    def _http(self, scope: Scope, error: HTTPException) -> Response:
        """What the router itself refuses: an unknown path, a wrong method."""
        path = scope["path"]
        match error.status_code:
            case 404:
                refusal: AssayError = NotFoundError(f"There is no {path} here; POST /v1/classify, or GET /v1/models.")
            case 405:
                allowed = (error.headers or {}).get("Allow", "another method")
                refusal = MethodError(f"{scope['method']} is not allowed on {path}; use {allowed}.")
            case _:
                refusal = RequestError(str(error.detail))
        response = self.answer(scope, refusal)
        response.headers.update(error.headers or {})
        return response


def _logged(error: InternalError, request_id: str) -> InternalError:
    """The same, naming the request for whoever reads the log. There a bug has its type and frames, and no message: that
    may quote a caller's text.
    """
    bug, details = error.__cause__, ""
    if bug is not None:
        details = f"\n{''.join(traceback.format_tb(bug.__traceback__)).rstrip()}\n{type(bug).__name__}"
    _log.error("Request %s failed: %s%s", request_id, error.message, details)
    return InternalError(f"{error.message} (request id {request_id})", error.param)

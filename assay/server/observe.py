"""Middleware: counts and times each request, and echoes its id. Knows no body."""

import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay.dialects.dialect import Dialect
from assay.metrics import Metrics


class Observe:
    """Plain ASGI, so that nothing is buffered. Requests to paths of no dialect are counted as `other`."""

    def __init__(self, app: ASGIApp, metrics: Metrics, dialect_of_path: Mapping[str, Dialect]) -> None:
        self.app = app
        self.metrics = metrics
        self.dialect_of_path = dialect_of_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        dialect = self.dialect_of_path.get(scope["path"])
        name = dialect.name if dialect else "other"
        request_id = Headers(scope=scope).get("x-request-id")

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                if request_id:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
                self.metrics.requests.labels(name, message["status"]).inc()
                self.metrics.request_seconds.labels(name).observe(time.monotonic() - started)
            await send(message)

        await self.app(scope, receive, send_observed)

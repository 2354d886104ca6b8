"""Middleware: counts and times each request, and echoes its id. Knows no body."""

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay.metrics import Metrics


class Observe:
    """Plain ASGI, so that nothing is buffered. Handlers leave their dialect in `scope`; without one it is `other`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = Headers(scope=scope).get("x-request-id")

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = scope["dialect"].name if "dialect" in scope else "other"
                if request_id:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
                self.metrics.requests.labels(name, message["status"]).inc()
                self.metrics.request_seconds.labels(name).observe(time.monotonic() - started)
            await send(message)

        await self.app(scope, receive, send_observed)

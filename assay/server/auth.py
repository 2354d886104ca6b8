"""Middleware: who has none of the API keys is refused before the body is read. Knows no route but the open ones."""

import hmac
import logging
from collections.abc import Iterator, Sequence

from starlette.middleware import Middleware
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from assay.config import ServerConfig
from assay.dialects import PATHS, spoken_at
from assay.errors import UnauthorizedError
from assay.metrics import Metrics
from assay.server.body import json_response
from assay.server.hosts import is_loopback

_log = logging.getLogger("assay.server")

# What probes and Prometheus ask without a key, as in SGLang; every other path needs one, those that do not exist too,
# so that nobody learns which do.
OPEN_PATHS = frozenset(
    {"/health", "/health_generate", "/ready", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"}
)


def authentication(config: ServerConfig, metrics: Metrics) -> list[Middleware]:
    """The check, where there are keys. Where there are none and others reach the port, a warning in the log."""
    if config.api_keys:
        return [Middleware(Authenticate, api_keys=config.api_keys, metrics=metrics)]
    if config.uds is None and not is_loopback(config.host):
        _log.warning(
            "Whoever reaches %s may use this server: it has no API key. Set ASSAY_API_KEY or --api-key.", config.host
        )
    return []


class Authenticate:
    """Plain ASGI, so that nothing is buffered. A key comes as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics
        self._keys = [key.encode() for key in api_keys]
        self._dialects = [(compile_path(path)[0], dialects[0]) for path, dialects in PATHS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self.app(scope, receive, send)
            return
        error = UnauthorizedError("Unauthorized")
        self.metrics.errors.labels(error.type).inc()
        scope["error_type"] = error.type
        dialect = next((dialect for path, dialect in self._dialects if path.match(scope["path"])), None)
        if dialect is None:
            dialect = spoken_at(scope["path"])
        else:
            scope["dialect"] = dialect  # so that the request is counted as one of this dialect
        headers = {"www-authenticate": "Bearer"}
        await json_response(dialect.render_error(error), dialect.status(error), headers)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Whether any credential is a key. All are compared to the end: the time tells nothing of which, or how far."""
        found = False
        for given in _credentials(scope):
            for key in self._keys:
                found |= hmac.compare_digest(given, key)
        return found


def _credentials(scope: Scope) -> Iterator[bytes]:
    """What may be a key, as the bytes that came. Header names are in lower case (ASGI)."""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, credential = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield credential.strip()

"""Middleware against web pages: which host names a request may be meant for, which pages may ask. Knows no route.

A page whose name is made to resolve to a loopback address (DNS rebinding) reaches a server there as its own origin; its
requests give it away, since they carry the page's name as Host. Addresses pass: no name was resolved.
"""

from collections.abc import Awaitable, Sequence
from functools import lru_cache
from ipaddress import ip_address

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from assay.config import ServerConfig
from assay.dialects import spoken_at
from assay.errors import MisdirectedError
from assay.metrics import Metrics
from assay.server.body import json_response
from assay.server.observation import TIMING_HEADERS


def host_check(config: ServerConfig, metrics: Metrics) -> list[Middleware]:
    """The check, where the operator names hosts, and on a loopback address, which browsers on the machine can reach.

    Nothing on a Unix socket, which they cannot; nothing on other addresses, whose names nobody told us.
    """
    if "*" in config.allowed_hosts:
        return []
    if not config.allowed_hosts and (config.uds is not None or not is_loopback(config.host)):
        return []
    return [Middleware(CheckHost, names=(*config.allowed_hosts, config.host), metrics=metrics)]


def cross_origin(config: ServerConfig) -> list[Middleware]:
    """CORS for the operator's origins. Preflights need no API key, since browsers send none with them."""
    if not config.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # clients have headers of their own: x-stainless-*, openai-organization, …
            expose_headers=("x-request-id", "retry-after", *TIMING_HEADERS),
        )
    ]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


class CheckHost:
    """Plain ASGI, so that nothing is buffered. A request without a Host passes: browsers always send one."""

    def __init__(self, app: ASGIApp, names: Sequence[str], metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._is_ours = lru_cache(maxsize=256)(self._may_pass)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"host" and not self._is_ours(value):
                    return self._refuse(_name_in(value.decode("latin-1")), scope, receive, send)
        return self.app(scope, receive, send)

    async def _refuse(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        error = MisdirectedError(
            f"The request is for the host {name!r}, and this server answers for others. "
            f"Start it with --allowed-host NAME to let that name in."
        )
        self.metrics.errors.labels(error.type).inc()
        scope["error_type"] = error.type
        dialect = spoken_at(scope["path"])
        await json_response(dialect.render_error(error), dialect.status(error))(scope, receive, send)

    def _may_pass(self, host: bytes) -> bool:
        name = _name_in(host.decode("latin-1"))
        return name in self._names or name in ("", "localhost") or name.endswith(".localhost") or _is_address(name)


def _name_in(host: str) -> str:
    """`Assay.Example.:8000` → `assay.example`; `[::1]:8000` → `::1`."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True

"""What a route that is no dialect is: its handler, and what it takes and answers, for /openapi.json. Knows no route."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from assay.dialects import DIALECTS
from assay.errors import AssayError
from assay.server.service import Service


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One handler and the paths that it answers, which may hold names: `{name}`, or `{name:path}` with slashes in it.

    summary: one line. response: the wire type of a 200, or the media type of what is not JSON. responses: wire types of
        further statuses that are no refusals. request: the wire type of the body, with an `example`.
    query: names in the query string, and what they mean.
    refusals: the errors that it raises, answered in the shape `error`, with `status` as HTTP status.
    """

    paths: tuple[str, ...]
    handler: Callable[[Service, Request], Awaitable[Response]]
    summary: str
    response: Any
    methods: tuple[str, ...] = ("GET",)
    responses: dict[int, Any] = field(default_factory=dict)
    request: Any = None
    example: Any = None
    query: dict[str, str] = field(default_factory=dict)
    refusals: tuple[type[AssayError], ...] = ()
    error: Any = DIALECTS[0].error
    render_error: Callable[[AssayError], Any] = DIALECTS[0].render_error
    status: Callable[[AssayError], int] = DIALECTS[0].status

    def routes(self, service: Service) -> list[Route]:
        return [Route(path, partial(self.handler, service), methods=list(self.methods)) for path in self.paths]

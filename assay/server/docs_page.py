"""GET /openapi.json, and /docs: a page to read it and try it, with everything it needs in this package.

The page asks no other host for anything, and its policy forbids it to. Knows no route but its own.
"""

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from assay.server.endpoint import Endpoint
from assay.server.openapi import openapi_document
from assay.server.service import Service

_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def docs_routes(service: Service, endpoints: Sequence[Endpoint]) -> list[BaseRoute]:
    @cache
    def document() -> bytes:
        return msgspec.json.encode(openapi_document(service.default.name, endpoints))

    async def openapi(request: Request) -> Response:
        """Made on the first request, in a thread: the event loop has others to answer."""
        return Response(await asyncio.to_thread(document), media_type="application/json")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", _page),
        Mount("/docs/static", StaticFiles(directory=_STATIC)),
    ]


async def _page(request: Request) -> Response:
    page = await asyncio.to_thread((_STATIC / "docs.html").read_bytes)
    return Response(page, headers=_HEADERS, media_type="text/html")

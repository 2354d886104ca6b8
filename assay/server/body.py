"""HTTP bodies: read within a limit, written as JSON. Knows no route and no shape."""

from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from assay.errors import ClientGoneError, MediaTypeError, TooLargeError


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Anything that msgspec can encode, as application/json."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused before it is read where its length is known, and while it is read where not."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise MediaTypeError(f"The content type is {media_type or 'missing'!r}; send application/json.")
    declared = request.headers.get("content-length", "0")
    chunks, size = [], int(declared) if declared.isdecimal() else 0
    if size <= limit:
        size = 0
        try:
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    break
        except ClientDisconnect:
            raise ClientGoneError("The client closed the connection.") from None
    if size > limit:
        raise TooLargeError(f"The request body is larger than {limit} bytes; split it.")
    return b"".join(chunks)

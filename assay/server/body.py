"""HTTP bodies: read within limits of size and time, written as JSON. Knows no route and no shape."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope

from assay.config import ServerConfig
from assay.errors import ClientGoneError, MediaTypeError, SlowRequestError, TooLargeError
from assay.server.exchange import Exchange

# Possessive, with an end that may be missing: linear whatever comes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class _Json(Response):
    """starlette's, made without a search for what may be among the headers."""

    def __init__(self, body: bytes, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.status_code, self.body, self.background = status, body, None
        self.raw_headers = [
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def json_response(
    value: Any,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    raw_headers: Iterable[tuple[bytes, bytes]] = (),
) -> Response:
    """Anything that msgspec can encode, as application/json. headers: others than of the body, in lower case, as text
    or as they are sent.
    """
    if headers:
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        raw_headers = [*raw_headers, *encoded]
    return _Json(msgspec.json.encode(value), status, raw_headers)


async def read_body(scope: Scope, receive: Receive, config: ServerConfig) -> bytes:
    """The body, refused before it is read where its length is known, and while it is read where not.

    Where the rest of it is not waited for, `scope["unread"]` is left, for whoever answers to close the connection.
    """
    fields: Mapping[bytes, bytes] = scope["observation"].fields
    _check_type(fields)
    declared = fields.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > config.max_body_bytes:
        raise _too_large(scope, config.max_body_bytes)
    chunks: list[bytes] = []
    try:
        if Exchange.of(scope).whole:
            await _read(scope, receive, config.max_body_bytes, chunks)
        else:
            async with asyncio.timeout(config.body_timeout):
                await _read(scope, receive, config.max_body_bytes, chunks)
    except TimeoutError:
        scope["unread"] = True
        raise SlowRequestError(
            f"The request body was not complete within {config.body_timeout:g} s; {sum(map(len, chunks))} bytes of it "
            "had come. Send it faster, or less of it."
        ) from None
    body = b"".join(chunks)
    _check_structure(body, config.max_request_inputs)
    return body


async def _read(scope: Scope, receive: Receive, limit: int, chunks: list[bytes]) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("The client closed the connection.")
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise _too_large(scope, limit)
        more = message.get("more_body", False)


def _check_structure(body: bytes, max_inputs: int) -> None:
    """Lists, objects and members are what JSON costs most to read: two million of them, which is what 8 MiB can hold,
    would keep everybody waiting for seconds. Counted outside of strings, in well under a tenth of a second.
    """
    limit = 8 * max_inputs + 10_000  # more than any request of so many inputs has, or any conversation
    if len(body) <= limit or body.count(b"[") + body.count(b"{") + body.count(b":") <= limit:
        return
    bare = _STRING.sub(b"", body)
    count = bare.count(b"[") + bare.count(b"{") + bare.count(b":")
    if count > limit:
        raise TooLargeError(
            f"The request body has {count} lists, objects and members, more than {max_inputs} inputs need; split it."
        )


def _check_type(fields: Mapping[bytes, bytes]) -> None:
    given = fields.get(b"content-type", b"")
    if given != b"application/json":
        media_type = given.decode("latin-1").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise MediaTypeError(f"The content type is {media_type or 'missing'!r}; send application/json.")
    encoding = fields.get(b"content-encoding")
    if encoding is not None and (name := encoding.decode("latin-1").strip().lower()) not in ("", "identity"):
        raise MediaTypeError(f"The content encoding is {name!r}; send the body as it is, not compressed.")


def _too_large(scope: Scope, limit: int) -> TooLargeError:
    scope["unread"] = True
    return TooLargeError(f"The request body is larger than {limit} bytes; split it.")

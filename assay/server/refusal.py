"""What a connection is told that is refused before it has a request: an error in the document's shape, and the end."""

import httptools
import msgspec

from assay.dialects import DIALECTS
from assay.errors import AssayError, QueueFullError, RequestError
from assay.server.cycle import head_of


class Refusal(Exception):
    """Raised in the parser's callbacks, to stop it."""

    def __init__(self, error: AssayError) -> None:
        self.error = error


def refusal(error: AssayError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """The whole answer, as it is sent."""
    dialect = DIALECTS[0]
    body = msgspec.json.encode(dialect.render_error(error))
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if isinstance(error, QueueFullError):
        headers.append((b"retry-after", b"%d" % error.retry_after))
    return head_of(dialect.status(error), headers) + body


def reason_of(error: httptools.HttpParserError) -> AssayError:
    """Of bytes that the parser does not take. Its words quote nothing; those of a callback's failure might."""
    if isinstance(error.__context__, Refusal):
        return error.__context__.error
    if isinstance(error, httptools.HttpParserCallbackError):
        return RequestError("The request is not valid HTTP: its URL cannot be read.")
    return RequestError(f"The request is not valid HTTP: {error}.")

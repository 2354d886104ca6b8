"""Every error that reaches a caller, drawn once; each class carries its HTTP status and type. Knows no HTTP body.

AssayError
├── RequestError            400  the caller's mistake
│   ├── ContextLengthError  400  longer than the model can read
│   ├── UnauthorizedError   401
│   ├── NotFoundError       404  no such path
│   ├── ModelNotFoundError  404  no such model
│   ├── MethodError         405
│   ├── TooLargeError       413  body or batch over the server's limits
│   └── MediaTypeError      415
├── QueueFullError          429  try again later
├── ClientGoneError         499  the caller hung up
├── InternalError           500  our bug, or a model that answers NaN
├── UnavailableError        503  loading, draining or dead
└── SetupError              ---  before anything is served: bad option, bad checkpoint
    ├── ConfigError
    └── CheckpointError
"""


class AssayError(Exception):
    """Root of the tree. `status` is the HTTP status, `type` the machine-readable kind, `param` the field at fault."""

    status = 500
    type = "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(AssayError):
    """The message quotes what came, but a caller who sends megabytes does not get them back."""

    status = 400
    type = "invalid_request_error"
    max_message = 800

    def __init__(self, message: str, param: str | None = None) -> None:
        if len(message) > self.max_message:
            message = f"{message[: self.max_message // 2]} … {message[-self.max_message // 4 :]}"
        super().__init__(message, param)


class ContextLengthError(RequestError):
    type = "context_length_exceeded"


class UnauthorizedError(RequestError):
    status = 401
    type = "unauthorized"


class NotFoundError(RequestError):
    status = 404
    type = "not_found"


class ModelNotFoundError(RequestError):
    status = 404
    type = "model_not_found"


class MethodError(RequestError):
    status = 405
    type = "method_not_allowed"


class TooLargeError(RequestError):
    status = 413
    type = "request_too_large"


class MediaTypeError(RequestError):
    status = 415
    type = "unsupported_media_type"


class QueueFullError(AssayError):
    """The queue holds as many tokens as it may. `retry_after` is in seconds."""

    status = 429
    type = "queue_full"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClientGoneError(AssayError):
    """The caller closed the connection; nobody reads the answer."""

    status = 499
    type = "client_closed_request"


class InternalError(AssayError):
    pass


class UnavailableError(AssayError):
    status = 503
    type = "unavailable"


class SetupError(AssayError):
    """Nothing is served yet: the command line prints the message as one line and exits with 1."""

    type = "setup_error"


class ConfigError(SetupError):
    type = "config_error"


class CheckpointError(SetupError):
    type = "checkpoint_error"

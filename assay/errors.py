"""Every error that reaches a caller, drawn once; each class carries its HTTP status and type. Knows no HTTP body.

AssayError
├── RequestError            400  the caller's mistake
│   ├── ContextLengthError  400  longer than the model can read
│   ├── UnauthorizedError   401
│   ├── NotFoundError       404  no such path
│   ├── ModelNotFoundError  404  no such model
│   ├── MethodError         405
│   ├── SlowRequestError    408  its head or body did not come in time
│   ├── TooLargeError       413  body or batch over the server's limits
│   ├── UriTooLongError     414
│   ├── MediaTypeError      415
│   ├── MisdirectedError    421  meant for a host that this server is not
│   └── HeadTooLargeError   431
├── QueueFullError          429  try again later
│   └── OverloadedError     503  the same, where the operator wants callers to see a 503
├── ClientGoneError         499  the caller hung up
├── InternalError           500  our bug, or a model that answers NaN
├── UnavailableError        503  loading, draining or dead
├── DeadlineError           504  not answered in the time that the caller gave
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
    """The message ends with what a caller of `/v1/classify` can do; `with_advice` puts another dialect's way there."""

    type = "context_length_exceeded"
    advice = "Shorten it, set truncate_prompt_tokens to -1 to cut it, or window to max to score all of it."

    def with_advice(self, advice: str) -> str:
        return self.message.replace(self.advice, advice)


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


class SlowRequestError(RequestError):
    status = 408
    type = "request_timeout"


class TooLargeError(RequestError):
    status = 413
    type = "request_too_large"


class UriTooLongError(RequestError):
    status = 414
    type = "uri_too_long"


class MediaTypeError(RequestError):
    status = 415
    type = "unsupported_media_type"


class MisdirectedError(RequestError):
    status = 421
    type = "misdirected_request"


class HeadTooLargeError(RequestError):
    status = 431
    type = "head_too_large"


class QueueFullError(AssayError):
    """The queue holds as many tokens as it may. `retry_after` is in seconds."""

    status = 429
    type = "queue_full"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverloadedError(QueueFullError):
    """For callers that retry a 5xx and never a 4xx, as post-training clients do."""

    status = 503
    type = "overloaded"


class ClientGoneError(AssayError):
    """The caller closed the connection; nobody reads the answer."""

    status = 499
    type = "client_closed_request"


class InternalError(AssayError):
    pass


class UnavailableError(AssayError):
    status = 503
    type = "unavailable"


class DeadlineError(AssayError):
    status = 504
    type = "deadline_exceeded"


class SetupError(AssayError):
    """Nothing is served yet: the command line prints the message as one line and exits with 1."""

    type = "setup_error"


class ConfigError(SetupError):
    type = "config_error"


class CheckpointError(SetupError):
    type = "checkpoint_error"

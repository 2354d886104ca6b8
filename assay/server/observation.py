"""What is known of one request while it runs: its id, who asked, what came of it. Knows no log, metric or trace."""

import time
from collections.abc import Mapping
from random import getrandbits

from msgspec import Struct, field
from starlette.types import Scope

from assay.metrics import mean_timings
from assay.sequence import Prediction, Prompt, Timings

TIMING_HEADERS = ("x-tokenization-time", "x-queue-time", "x-inference-time")
_TIMING_HEADERS = [name.encode() for name in TIMING_HEADERS]

_MAX_ID = 128
_MAX_PATH = 256  # a path is the caller's, and may be as long as a text


class Observation(Struct, eq=False):
    """Made by `Observe` for each request, and left in `scope["observation"]` for handlers to fill.

    request_id: the caller's, or 32 hex digits. client: address and port. started: on the monotonic clock; started_ns:
        the same moment in Unix time. seconds: until the answer begins. fields: the first header of each name.
    dialect, model: ours, never the caller's own words. status: of the answer. error: the type of what was refused.
    prompts, predictions: of what was scored, which began at `scoring`. trace_id: where traces are sent.
    """

    request_id: str
    method: str
    path: str
    client: str | None
    headers: list[tuple[bytes, bytes]]
    started: float = field(default_factory=time.monotonic)
    started_ns: int = field(default_factory=time.time_ns)
    seconds: float = 0.0
    dialect: str = "other"
    model: str | None = None
    status: int = 0
    error: str | None = None
    prompts: list[Prompt] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    scoring: float = 0.0
    trace_id: str | None = None
    fields: dict[bytes, bytes] = field(default_factory=dict)
    _stages: Timings | None = None

    @classmethod
    def of(cls, scope: Scope) -> "Observation":
        client = scope.get("client")
        fields = dict(reversed(scope["headers"]))
        return cls(
            request_id=_id_in(fields) or f"{getrandbits(128):032x}",  # no secret
            method=scope["method"][:16],
            path=scope["path"][:_MAX_PATH],
            client=f"{client[0]}:{client[1]}" if client else None,
            headers=scope["headers"],
            fields=fields,
        )

    def named(self, body_id: str | None) -> str:
        """The answer's id: the header's, else the one in the body, else ours. Where a header can carry it, it is the
        request's id everywhere.
        """
        if not body_id or _id_in(self.fields):
            return self.request_id
        usable = _usable(body_id)
        if usable is None:
            return body_id[:_MAX_ID]
        self.request_id = usable
        return usable

    @property
    def stages(self) -> Timings:
        """The mean over the inputs, as TEI counts them."""
        if self._stages is None:
            self._stages = mean_timings(self.predictions)
        return self._stages

    def timing_headers(self) -> list[tuple[bytes, bytes]]:
        """TEI's names and unit: whole milliseconds."""
        stages = self.stages
        tokenization, queue, inference = _TIMING_HEADERS
        return [
            (tokenization, b"%d" % (stages.tokenize * 1000)),
            (queue, b"%d" % (stages.queue * 1000)),
            (inference, b"%d" % (stages.inference * 1000)),
        ]


def _id_in(fields: Mapping[bytes, bytes]) -> str | None:
    given = fields.get(b"x-request-id")
    return None if given is None else _usable(given.decode("latin-1"))


def _usable(text: str) -> str | None:
    """At most 128 printable ASCII characters, as a header and one line of a log can hold; None for anything else."""
    cut = text.strip()[:_MAX_ID].rstrip()
    return cut if cut and cut.isascii() and cut.isprintable() else None

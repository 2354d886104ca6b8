"""One line a request, for people or for machines. Knows no header's value and, unless told to, no text.

The lines go through the logger `assay.access`. What probes ask is logged as DEBUG while it succeeds, all else as INFO.
"""

import json
import logging
import sys
import threading
import time
from collections import deque
from functools import lru_cache
from typing import TextIO

import msgspec

from assay.config import ServerConfig
from assay.sequence import ChatPrompt, Prompt, TextPrompt
from assay.server.observation import Observation

PROBES = frozenset({"/health", "/ready", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"})

_MAX_TEXT = 200
_MAX_TEXTS = 32

_PAUSE_SECONDS = 0.05
_MOST_WAITING = 10_000
_CLOSE_SECONDS = 2.0

_log = logging.getLogger("assay.access")
_server_log = logging.getLogger("assay.server")


class Line(msgspec.Struct, omit_defaults=True):
    """Milliseconds. What does not apply is left out: stages of what was not scored, the error of what succeeded."""

    time: str
    request_id: str
    method: str
    path: str
    dialect: str
    status: int
    duration_ms: float
    client: str | None = None
    model: str | None = None
    error: str | None = None
    prompts: int | None = None
    tokens: int | None = None
    tokenize_ms: float | None = None
    queue_ms: float | None = None
    inference_ms: float | None = None
    trace_id: str | None = None
    inputs: list[str] | None = None


class AccessLog:
    """Called with each request once it is answered.

    A thread writes what has come in the last moments in one go: a write for each request costs as much as all the rest
    of its line, and a reader who does not read would hold up the event loop.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._render = _json if config.access_log == "json" else _text
        self._with_inputs = config.log_inputs
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._more = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="assay-access-log", daemon=True)

    def __call__(self, observation: Observation) -> None:
        level = logging.DEBUG if observation.path in PROBES and observation.status < 400 else logging.INFO
        if not _log.isEnabledFor(level):
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append(self._render(_line(observation, self._with_inputs)))
        if not self._more.is_set():
            if self._thread.ident is None:
                self._thread.start()
            self._more.set()

    def close(self) -> None:
        """Write what is left, unless nobody reads it. From another thread than the event loop's."""
        self._closing.set()
        self._more.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._more.wait()
            self._closing.wait(_PAUSE_SECONDS)
            self._more.clear()
            self._write()

    def _write(self) -> None:
        lines = []
        while self._waiting:
            lines.append(self._waiting.popleft())
        if lines:
            _log.info("%s", "\n".join(lines))
        if self._dropped:
            _server_log.warning("The access log is read too slowly: %d lines were dropped.", self._dropped)
            self._dropped = 0


def write_access_log(config: ServerConfig, stream: TextIO | None = None) -> None:
    """Give the logger a handler of its own on stderr, whatever level the other loggers have. For the command line."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers = [handler]
    _log.propagate = False
    _log.setLevel(logging.DEBUG if config.log_level == "debug" else logging.INFO)


def _line(observation: Observation, with_inputs: bool) -> Line:
    line = Line(
        time=_moment(observation.started_ns),
        request_id=observation.request_id,
        method=observation.method,
        path=observation.path,
        dialect=observation.dialect,
        status=observation.status,
        duration_ms=_milliseconds(observation.seconds),
        client=observation.client,
        model=observation.model,
        error=observation.error,
        trace_id=observation.trace_id,
    )
    if observation.prompts:
        line.prompts = len(observation.prompts)
        if with_inputs:
            line.inputs = [_cut(prompt) for prompt in observation.prompts[:_MAX_TEXTS]]
    if observation.predictions:
        line.tokens = sum(prediction.num_tokens for prediction in observation.predictions)
        stages = observation.stages
        line.tokenize_ms = _milliseconds(stages.tokenize)
        line.queue_ms = _milliseconds(stages.queue)
        line.inference_ms = _milliseconds(stages.inference)
    return line


def _moment(nanoseconds: int) -> str:
    """Unix time as RFC 3339, in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _cut(prompt: Prompt) -> str:
    """What a person would recognise it by."""
    if isinstance(prompt, TextPrompt):
        text = prompt.text if prompt.text_pair is None else f"{prompt.text[:_MAX_TEXT]} | {prompt.text_pair}"
    elif isinstance(prompt, ChatPrompt):
        text = " | ".join(str(message.get("content"))[:_MAX_TEXT] for message in prompt.messages[:_MAX_TEXTS])
    else:
        text = str(prompt.token_ids[:_MAX_TEXT])
    return text[:_MAX_TEXT]


def _json(line: Line) -> str:
    return msgspec.json.encode(line).decode()


def _text(line: Line) -> str:
    """`time client "METHOD path" status duration name=value …`; what a caller chose is quoted, so a line stays one."""
    fields = msgspec.structs.asdict(line)
    request = json.dumps(f"{fields.pop('method')} {fields.pop('path')}")
    head = [fields.pop("time"), fields.pop("client") or "-", request, str(fields.pop("status"))]
    duration = f"{fields.pop('duration_ms')} ms"
    return " ".join(
        [*head, duration, *(f"{name}={_plain(value)}" for name, value in fields.items() if value is not None)]
    )


def _plain(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) or " " in str(value) else str(value)

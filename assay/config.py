"""What an operator may set: frozen, checked once, passed in. Knows neither torch nor the environment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from assay.errors import ConfigError

Activation = Literal["none", "softmax", "sigmoid"]
ActivationChoice = Literal["auto", "none", "softmax", "sigmoid"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
LogLevel = Literal["debug", "info", "warning", "error"]

TEMPLATES = Path(__file__).parent / "templates"
BUNDLED_MODEL = Path(__file__).parent / "bundled" / "emotions"


def _check_choice(name: str, value: str, allowed: object) -> None:
    choices = get_args(allowed)
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


def _check_at_least(name: str, value: int | float, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r}; it must be a number, at least {least}.")
    if not value >= least:  # so that NaN is refused too
        raise ConfigError(f"{name} is {value}; it must be at least {least}.")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One model and how it is run.

    model: a folder, or a hub id such as `unitary/toxic-bert`.
    name: what callers call it; None is the model as given.
    revision: branch, tag or commit of a hub id.
    max_model_len: longest sequence in tokens; None takes the checkpoint's own limit.
    max_batch_tokens: tokens in one forward pass. A longer sequence runs alone.
    max_queue_tokens: tokens that may wait; beyond it callers get QueueFullError.
    truncate_prompt_tokens: for inputs that are too long, where the request does not say: None refuses them, -1 cuts
        them to the model's length, n to n tokens. Gateways drop the request's own field.
    chat_template: a file with a Jinja template that replaces the checkpoint's own, or the name of one in `templates`.
    classifier_from_token: for rerankers saved as language models: the tokens whose logits are the score, `no,yes` (the
        second minus the first) or one alone. None takes what a sentence-transformers LogitScore module says.
    adapter: a PEFT LoRA adapter (folder or hub id) that is merged into the model.
    allow_pickle: read weights that exist only as `.bin`, as data, without running a pickle's code.
    tokenizer_threads: threads that turn text into ids, off the event loop.
    """

    model: str = str(BUNDLED_MODEL)
    name: str | None = None
    revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    max_model_len: int | None = None
    max_batch_tokens: int = 2048
    max_queue_tokens: int = 1_048_576
    activation: ActivationChoice = "auto"
    truncate_prompt_tokens: int | None = None
    chat_template: str | None = None
    classifier_from_token: str | None = None
    adapter: str | None = None
    allow_pickle: bool = False
    tokenizer_threads: int = 2

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty; give a folder or a hub id.")
        _check_choice("dtype", self.dtype, DType)
        _check_choice("device", self.device, Device)
        _check_choice("activation", self.activation, ActivationChoice)
        _check_at_least("max_batch_tokens", self.max_batch_tokens, 1)
        _check_at_least("max_queue_tokens", self.max_queue_tokens, 1)
        _check_at_least("tokenizer_threads", self.tokenizer_threads, 1)
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            _check_at_least("truncate_prompt_tokens", self.truncate_prompt_tokens, 1)
        if self.max_model_len is not None:
            _check_at_least("max_model_len", self.max_model_len, 1)

    @property
    def chat_template_path(self) -> Path | None:
        """The template's file: a path, or the name of one that ships with assay."""
        if self.chat_template is None:
            return None
        shipped = TEMPLATES / f"{self.chat_template}.jinja"
        return shipped if shipped.is_file() else Path(self.chat_template)

    @property
    def served_name(self) -> str:
        """The name that callers use: the operator's, the bundled model's own, or the model as it was given."""
        if self.name is not None:
            return self.name
        return "assay/emotions" if self.model == str(BUNDLED_MODEL) else self.model


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and how the server listens.

    max_body_bytes: larger request bodies get 413 before they are read.
    max_request_inputs: prompts in one request; more get 413 before they are tokenized.
    drain_timeout: seconds that accepted requests have to finish after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    max_body_bytes: int = 8 * 1024 * 1024
    max_request_inputs: int = 16_384
    drain_timeout: float = 30.0
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port!r}; it must be an integer between 0 and 65535.")
        _check_choice("log_level", self.log_level, LogLevel)
        _check_at_least("max_body_bytes", self.max_body_bytes, 1)
        _check_at_least("max_request_inputs", self.max_request_inputs, 1)
        _check_at_least("drain_timeout", self.drain_timeout, 0)

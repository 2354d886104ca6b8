"""What an operator may set: frozen, checked once, passed in. Knows neither torch nor the environment.

Each setting is declared once, with its type, what it means and what it may be; the command line's options are made of
these declarations.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from assay.errors import ConfigError

Activation = Literal["none", "softmax", "sigmoid"]
Windowing = Literal["none", "max", "mean", "noisy_or"]
ActivationChoice = Literal["auto", "none", "softmax", "sigmoid"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
WhenFull = Literal["429", "503", "wait"]
PriorityOrder = Literal["higher-first", "lower-first"]
LogLevel = Literal["debug", "info", "warning", "error"]
Quantization = Literal["none", "int8"]
AccessLogForm = Literal["none", "json", "text"]

TEMPLATES = Path(__file__).parent / "templates"
_HOST = re.compile(r"\*|[\w.-]+")
_ORIGIN = re.compile(r"https?://(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d+)?")
BUNDLED_MODEL = Path(__file__).parent / "bundled" / "emotions"
BUNDLED_NAME = "assay/emotions"


@dataclass(frozen=True, slots=True)
class Setting:
    """help: one line, as `--help` prints it. least, most: of numbers. also: a number that is allowed besides."""

    help: str
    least: float | None = None
    most: float | None = None
    also: float | None = None


@cache
def settings(config: Callable[..., Any]) -> dict[str, tuple[Any, Setting]]:
    """Name → (type, Setting) of a config's fields, in order."""
    hints = get_type_hints(config, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items()}


def check(config: Any) -> None:
    """Raises ConfigError that names the setting, its value and what is allowed."""
    for name, (kind, setting) in settings(config.__class__).items():
        value, kinds = getattr(config, name), get_args(kind)
        if get_origin(kind) is Literal and value not in kinds:
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(kinds)}.")
        if setting.least is not None and not (value is None and NoneType in kinds):
            _check_number(name, value, float in (kind, *kinds), setting)


def _check_number(name: str, value: Any, fractions: bool, setting: Setting) -> None:
    what = "a number" if fractions else "an integer"
    least, most = setting.least or 0, math.inf if setting.most is None else setting.most
    allowed = f"{what}, at least {least}" if most == math.inf else f"{what} between {least} and {most}"
    if setting.also is not None:
        allowed += f", or {setting.also}"
    if isinstance(value, bool) or not isinstance(value, int | float if fractions else int):
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}.")
    if not least <= value <= most and value != setting.also:  # so that NaN is refused too
        raise ConfigError(f"{name} is {value}; it must be {allowed}.")


def _check_keys(api_keys: tuple[str, ...]) -> None:
    """No message quotes a key."""
    if not isinstance(api_keys, tuple) or not all(isinstance(key, str) for key in api_keys):
        raise ConfigError("api_keys must be a tuple of strings.")
    for number, key in enumerate(api_keys, 1):
        if not key:
            raise ConfigError(f"API key {number} of {len(api_keys)} is empty; give it a value, or leave it out.")
        if not all("!" <= character <= "~" for character in key):  # what a header carries whole
            raise ConfigError(
                f"API key {number} of {len(api_keys)} has spaces or characters beyond ASCII; use letters, digits and "
                "punctuation."
            )


def _check_tuple(setting: str, values: tuple[str, ...]) -> None:
    if not isinstance(values, tuple):
        raise ConfigError(f"{setting} must be a tuple of strings.")


def _check_networks(setting: str, values: tuple[str, ...]) -> None:
    _check_tuple(setting, values)
    for value in values:
        try:
            if value != "*":
                ip_network(value)
        except ValueError:
            raise ConfigError(
                f"{setting} has {value!r}; it must be an address, a network like 10.0.0.0/8, or *."
            ) from None


def _check_names(setting: str, values: tuple[str, ...], pattern: re.Pattern[str], allowed: str) -> None:
    _check_tuple(setting, values)
    for value in values:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ConfigError(f"{setting} has {value!r}; it must be {allowed}.")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One model and how it is run."""

    model: Annotated[str, Setting("A folder or a hub id, such as unitary/toxic-bert.")] = str(BUNDLED_MODEL)
    name: Annotated[str | None, Setting("What callers call it. Default: the model as given.")] = None
    revision: Annotated[str | None, Setting("Branch, tag or commit of a hub id.")] = None
    dtype: Annotated[DType, Setting("Precision of the trunk; heads are float32. auto: float32 on a CPU.")] = "auto"
    device: Annotated[Device, Setting("auto takes a GPU where there is one.")] = "auto"
    quantization: Annotated[
        Quantization,
        Setting(
            "int8: the trunk's products in 8-bit integers, on an x86 CPU; 1.7 to 3.5 times as fast, most with VNNI."
        ),
    ] = "none"
    deterministic: Annotated[
        bool, Setting("A text's logits are the same bits alone, in any batch and at any load, on one machine.")
    ] = False
    max_model_len: Annotated[
        int | None, Setting("Longest input in tokens. Default: the checkpoint's own limit.", least=1)
    ] = None
    activation: Annotated[ActivationChoice, Setting("auto: what the checkpoint's config asks for.")] = "auto"
    truncate_prompt_tokens: Annotated[
        int | None,
        Setting("Cut longer inputs to this many tokens, -1: the model's length. Default: refuse them.", 1, also=-1),
    ] = None
    window: Annotated[
        Windowing, Setting("Score longer inputs in overlapping windows, and combine their scores so.")
    ] = "none"
    chat_template: Annotated[
        str | None, Setting("Jinja file, or the name of a shipped one, in place of the checkpoint's template.")
    ] = None
    trust_request_chat_template: Annotated[bool, Setting("Let requests bring their own chat_template.")] = False
    classifier_from_token: Annotated[
        str | None,
        Setting("For rerankers saved as language models: the answer tokens, no,yes (second minus first), or one."),
    ] = None
    calibration: Annotated[
        str | None, Setting("File of `assay calibrate`, made for this model: corrects probabilities, flags by label.")
    ] = None
    adapter: Annotated[str | None, Setting("PEFT LoRA adapter to merge: a folder or a hub id.")] = None
    allow_pickle: Annotated[bool, Setting("Read .bin weights, as data only.")] = False
    max_batch_tokens: Annotated[int, Setting("Tokens in one forward pass; a longer input runs alone.", least=1)] = 2048
    max_queue_tokens: Annotated[int, Setting("Tokens that may wait for the device.", least=1)] = 1_048_576
    max_cache_bytes: Annotated[
        int, Setting("Memory for answers, given again to the same input; 0 computes each time.", least=0)
    ] = 0
    when_full: Annotated[
        WhenFull, Setting("What callers get when the queue is full: a status, or a place in line.")
    ] = "429"
    priority_order: Annotated[
        PriorityOrder, Setting("Which priority goes first; vLLM's callers expect the lower one.")
    ] = "higher-first"
    tokenizer_threads: Annotated[int, Setting("Threads that turn text into token ids.", least=1)] = 2
    tokenizer_timeout: Annotated[
        float, Setting("Seconds after which a tokenizer that does not come back is given up.", least=0)
    ] = 60.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty; give a folder or a hub id.")
        check(self)
        if self.truncate_prompt_tokens is not None and self.window != "none":
            raise ConfigError("truncate_prompt_tokens and window are two ways with one long text; choose one.")

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
        return BUNDLED_NAME if self.model == str(BUNDLED_MODEL) else self.model


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and how the server listens."""

    host: Annotated[str, Setting("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Setting("Port to listen on; 0 takes a free one.", least=0, most=65535)] = 8000
    served_model_name: Annotated[str | None, Setting("Name in requests. Default: MODEL as given.")] = None
    api_keys: Annotated[
        tuple[str, ...],
        Setting("Ask for this key; may be repeated. Default: ASSAY_API_KEY, keys separated by commas."),
    ] = field(default=(), repr=False)
    uds: Annotated[
        str | None, Setting("Listen on a Unix socket at this path, for this user alone (0600); not on host and port.")
    ] = None
    ssl_certfile: Annotated[str | None, Setting("Serve HTTPS with this PEM certificate, its chain after it.")] = None
    ssl_keyfile: Annotated[str | None, Setting("The certificate's key, where it is in a file of its own.")] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        Setting(
            "Answer requests for this host name; may be repeated, * is any. Default on a loopback address: "
            "localhost. IP addresses always pass."
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Setting("Let pages of this origin ask, such as https://app.example.com; may be repeated. Default: none."),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Setting(
            "Believe this address or network who its requests come from (X-Forwarded-For); may be repeated, * is any."
        ),
    ] = ("127.0.0.1",)
    max_connections: Annotated[int, Setting("Open connections; more get 503.", least=1)] = 4096
    max_header_bytes: Annotated[int, Setting("Larger request heads get 431.", least=256)] = 32 * 1024
    header_timeout: Annotated[
        float,
        Setting("Seconds until a request's head must be there, from its first byte or the connection's start.", 0.1),
    ] = 10.0
    body_timeout: Annotated[float, Setting("Seconds until a request's body must be there, else 408.", least=0.1)] = 30.0
    write_timeout: Annotated[
        float, Setting("Seconds after which a client that does not read its answer is cut off.", least=0.1)
    ] = 30.0
    max_body_bytes: Annotated[int, Setting("Larger request bodies get 413.", least=1)] = 8 * 1024 * 1024
    max_request_inputs: Annotated[int, Setting("Requests with more inputs get 413.", least=1)] = 16_384
    request_timeout: Annotated[
        float | None,
        Setting("Seconds until a request gets 504; its header x-request-timeout-ms wins. Default: none.", least=0),
    ] = None
    drain_timeout: Annotated[float, Setting("Seconds to answer what was accepted, after SIGTERM.", least=0)] = 30.0
    log_level: Annotated[LogLevel, Setting("What is written to stderr.")] = "info"
    access_log: Annotated[AccessLogForm, Setting("One line a request on stderr; never its text.")] = "json"
    log_inputs: Annotated[bool, Setting("Write texts into the access log too, cut to 200 characters.")] = False
    otlp_endpoint: Annotated[
        str | None, Setting("Send OpenTelemetry traces to this collector, such as http://127.0.0.1:4318.")
    ] = None

    def __post_init__(self) -> None:
        check(self)
        _check_keys(self.api_keys)
        _check_names("allowed_hosts", self.allowed_hosts, _HOST, "a host's name without a port, or *")
        _check_networks("trusted_proxies", self.trusted_proxies)
        _check_names("cors_origins", self.cors_origins, _ORIGIN, "like https://app.example.com: no path, no *")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_keyfile is set, and ssl_certfile is not; give both.")
        if self.log_inputs and self.access_log == "none":
            raise ConfigError("log_inputs is set, and access_log is none; choose json or text.")
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"otlp_endpoint is {self.otlp_endpoint!r}; it must begin with http:// or https://.")

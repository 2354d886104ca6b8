"""The words of the house: prompt, options, sequence, prediction. Plain data; knows neither HTTP nor torch.

msgspec's structs, since a frozen dataclass takes eight times as long to make, and a request makes a dozen.
"""

import math
from array import array
from typing import Any, Literal, get_args

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from assay.config import Activation, Windowing
from assay.errors import RequestError

TruncationSide = Literal["left", "right"]

_CHOICES = (
    ("activation", get_args(Activation)),
    ("truncation_side", get_args(TruncationSide)),
    ("window", get_args(Windowing)),
)


class TextPrompt(Struct, frozen=True):
    """A text to score, or a pair of texts that the model reads together.

    instruction: what a reranker's template is told of the task, where it takes one.
    """

    text: str
    text_pair: str | None = None
    instruction: str | None = None


class TokenPrompt(Struct, frozen=True):
    """Token ids, scored as they are: nothing is added."""

    token_ids: list[int]


class ChatPrompt(Struct, frozen=True):
    """A conversation, rendered by the model's chat template.

    messages: objects with `role` and `content`, as chat APIs have them.
    add_generation_prompt: end with the opening of the assistant's next turn.
    continue_final_message: leave the last message open, without its closing tokens.
    template_kwargs: further variables of the template, e.g. `enable_thinking`.
    template: a template of the request's own, where the operator trusts requests so far.
    """

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    template: str | None = None


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class Options(Struct, frozen=True):
    """How a request wants its prompts scored.

    truncate_prompt_tokens: cut to this many tokens, special ones included; -1 is the model's length; None refuses
        what is longer.
    truncation_side: the side that is cut; None takes the tokenizer's.
    add_special_tokens: whether the model's [CLS], [SEP] or BOS are added; None adds them to texts, and not to
        conversations, whose template writes them itself.
    activation: None takes the model's own; "none" leaves raw logits in `Prediction.probs`.
    priority: higher is served first.
    window: how a text that is too long is scored in overlapping windows (docs/windows.md); "none" does not; None takes
        the server's way.
    windowed: whether there is to be more than one, where it is longer.
    window_size, window_overlap: tokens of a window, special ones and a pair's first text included, and how many of its
        text's tokens the next one repeats; None takes the model's length, and a quarter of the text's share.
    """

    truncate_prompt_tokens: int | None = None
    truncation_side: TruncationSide | None = None
    add_special_tokens: bool | None = None
    activation: Activation | None = None
    priority: int = 0
    window: Windowing | None = None
    window_size: int | None = None
    window_overlap: int | None = None
    windowed: bool = False  # whatever is given here

    def __post_init__(self) -> None:
        """Raises RequestError: an option of a wrong value would otherwise fail far from its caller."""
        force_setattr(self, "windowed", self.window not in (None, "none"))
        for name, allowed in _CHOICES:
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise RequestError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.", param=name)
        for name in ("truncate_prompt_tokens", "priority", "window_size", "window_overlap"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise RequestError(f"{name} is {value!r}; it must be an integer.", param=name)
        if self.windowed and self.truncate_prompt_tokens is not None:
            raise RequestError("window and truncate_prompt_tokens are two ways with one long text; send one.", "window")
        if not self.windowed and (self.window_size is not None or self.window_overlap is not None):
            raise RequestError("window_size and window_overlap need a window: max, mean or noisy_or.", "window")


class Timings(Struct):
    """Seconds that a sequence spent in each stage."""

    tokenize: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


class Span(Struct, frozen=True):
    """Characters `start` to `end` (Python's, i.e. code points) of a text, the second one of a pair."""

    start: int
    end: int


class Sequence(Struct, eq=False):
    """One tokenized prompt, or one window of it, on its way through the engine.

    token_ids, token_type_ids: of equal length, num_tokens; types None means all zero. They stay as they are.
    index: its place in the request. prompt: the place of its prompt. span: what it is of its text, where windows are
        asked for.
    arrival: when its request came, in seconds on the monotonic clock.
    deadline: when its caller stops waiting, on the same clock.
    turn, request: its place in the queue; the scheduler's.
    queued: it waits in the scheduler. cancelled: nobody waits for it any more, and it is not computed.
    """

    token_ids: list[int]
    token_type_ids: list[int] | None = None
    index: int = 0
    prompt: int = 0
    span: Span | None = None
    activation: Activation = "softmax"
    priority: int = 0
    arrival: float = 0.0
    deadline: float = math.inf
    turn: float = 0.0
    request: int = 0
    queued: bool = False
    cancelled: bool = False
    timings: Timings = field(default_factory=Timings)
    num_tokens: int = 0  # counted once, since it is asked for a dozen times

    def __post_init__(self) -> None:
        self.num_tokens = len(self.token_ids)

    @property
    def content(self) -> bytes:
        """What is scored, and how: one model gives sequences of equal content the same prediction."""
        types = self.token_type_ids
        if types is None:
            return f"{self.activation} ".encode() + array("I", self.token_ids).tobytes()
        return f"{self.activation}+".encode() + array("I", self.token_ids + types).tobytes()


class Window(Struct, frozen=True):
    """The window that speaks for `Prediction.label`: which of `count`, and its characters."""

    index: int
    count: int
    span: Span


class Prediction(Struct, frozen=True, eq=False):
    """What the model says of one prompt; equal to another that says the same, however long it took.

    label: name of the largest logit, as a calibration corrected it if one did.
    probs: after the activation, float32, one per label; the raw logits where the activation is "none".
    logits: as the head computed them, in float32.
    num_tokens: tokens that were scored, after any truncation; of all windows together.
    window: the one that decided, where windows were asked for.
    calibrated: the logits as a calibration corrected them, from which `probs` come; None where none did.
    """

    label: str
    probs: list[float]
    logits: list[float]
    num_tokens: int
    timings: Timings = field(default_factory=Timings)
    window: Window | None = None
    calibrated: list[float] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prediction) and self._said == other._said

    @property
    def _said(self) -> tuple[object, ...]:
        return self.label, self.probs, self.logits, self.num_tokens, self.window, self.calibrated

    def copied(self, timings: Timings) -> "Prediction":
        """The same scores in lists of their own, so that whoever changes one prediction changes no other."""
        calibrated = None if self.calibrated is None else [*self.calibrated]
        return replace(self, probs=[*self.probs], logits=[*self.logits], timings=timings, calibrated=calibrated)

"""The words of the house: prompt, options, sequence, prediction. Plain data; knows neither HTTP nor torch."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from assay.config import Activation
from assay.errors import RequestError

TruncationSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text to score, or a pair of texts that the model reads together."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, scored as they are: nothing is added."""

    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template.

    messages: objects with `role` and `content`, as chat APIs have them.
    add_generation_prompt: end with the opening of the assistant's next turn.
    continue_final_message: leave the last message open, without its closing tokens.
    template_kwargs: further variables of the template, e.g. `enable_thinking`.
    """

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class Options:
    """How a request wants its prompts scored.

    truncate_prompt_tokens: cut to this many tokens, special ones included; -1 is the model's length; None refuses
        what is longer.
    truncation_side: the side that is cut; None takes the tokenizer's.
    add_special_tokens: whether the model's [CLS], [SEP] or BOS are added; None adds them to texts, and not to
        conversations, whose template writes them itself.
    activation: None takes the model's own; "none" leaves raw logits in `Prediction.probs`.
    priority: higher is served first.
    """

    truncate_prompt_tokens: int | None = None
    truncation_side: TruncationSide | None = None
    add_special_tokens: bool | None = None
    activation: Activation | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        """Raises RequestError: an option of a wrong value would otherwise fail far from its caller."""
        for name, allowed in (("activation", get_args(Activation)), ("truncation_side", get_args(TruncationSide))):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise RequestError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.", param=name)
        for name in ("truncate_prompt_tokens", "priority"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise RequestError(f"{name} is {value!r}; it must be an integer.", param=name)


@dataclass(slots=True)
class Timings:
    """Seconds that a sequence spent in each stage."""

    tokenize: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


@dataclass(slots=True, eq=False)
class Sequence:
    """One tokenized prompt on its way through the engine.

    token_ids, token_type_ids: of equal length; types None means all zero.
    index: its place in the request.
    arrival: when its request came, in seconds on the monotonic clock; orders the queue.
    queued: it waits in the scheduler. cancelled: nobody waits for it any more, and it is not computed.
    """

    token_ids: list[int]
    token_type_ids: list[int] | None = None
    index: int = 0
    activation: Activation = "softmax"
    priority: int = 0
    arrival: float = 0.0
    queued: bool = False
    cancelled: bool = False
    timings: Timings = field(default_factory=Timings)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one prompt.

    label: name of the largest logit.
    probs: after the activation, float32, one per label; the raw logits where the activation is "none".
    logits: as the head computed them, in float32.
    num_tokens: tokens that were scored, after any truncation.
    """

    label: str
    probs: list[float]
    logits: list[float]
    num_tokens: int
    timings: Timings = field(default_factory=Timings, compare=False)

"""What many requests have in common: options, and prompts as `input` or `messages`. Knows no path and no answer."""

from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from assay.config import Windowing
from assay.dialects.dialect import Call
from assay.errors import RequestError
from assay.sequence import ChatPrompt, Options, Prediction, Prompt, TextPrompt, TokenPrompt

# Most requests want what others want, and to check it takes longer than to look it up. In Options' order.
_options = lru_cache(maxsize=256)(Options)


class PairInput(msgspec.Struct):
    """A text, or a pair that is read together. Gateways drop unknown fields of a request, but not of its input."""

    text: str
    text_pair: str | None = None


Input = str | PairInput | list[str | int | list[int] | PairInput]


class WindowFields(msgspec.Struct):
    """The window that speaks for an answer: which of `count`, and its characters (code points) in the text."""

    index: int
    count: int
    start: int
    end: int


def window_fields(prediction: Prediction) -> WindowFields | msgspec.UnsetType:
    """Unset where no windows were asked for, so that answers are as their callers know them."""
    window = prediction.window
    return WindowFields(window.index, window.count, window.span.start, window.span.end) if window else msgspec.UNSET


class OptionFields(msgspec.Struct, kw_only=True):
    """Unknown fields are ignored, as both peers do. `activation` and `softmax` are older names of `use_activation`,
    and Infinity's `raw_scores` is its opposite.
    """

    model: Annotated[str | None, Meta(description="A served model's name; absent or empty: the default.")] = None
    user: str | None = None
    rid: str | list[str] | None = None
    request_id: Annotated[str | None, Meta(description="For tracking, after the header X-Request-Id.")] = None
    # SGLang's clients send null for what they do not set.
    priority: Annotated[int | None, Meta(description="Higher is served first.")] = 0
    truncate_prompt_tokens: Annotated[int | None, Meta(description="Cut to so many; -1: to the model's length.")] = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    use_activation: Annotated[bool | None, Meta(description="False gives raw logits.")] = None
    activation: bool | None = None
    softmax: bool | None = None
    raw_scores: bool | None = None
    window: Annotated[Windowing | None, Meta(description="How windows over a longer input are combined.")] = None
    window_size: int | None = None
    window_overlap: int | None = None

    def call(self, prompts: list[Prompt], context: Any = None) -> Call:
        """These prompts, with the options that the fields ask for."""
        return Call(
            prompts=prompts,
            options=_options(
                self.truncate_prompt_tokens,
                self.truncation_side,
                self.add_special_tokens,
                "none" if self._wants_raw() else None,
                self.priority or 0,
                self.window,
                self.window_size,
                self.window_overlap,
            ),
            model=self.model or None,
            request_id=self.request_id or (self.rid if isinstance(self.rid, str) else None) or None,
            context=context,
        )

    def _wants_raw(self) -> bool:
        """The newest name that is given decides."""
        for flag in (self.use_activation, self.activation, self.softmax):
            if flag is not None:
                return not flag
        return bool(self.raw_scores)


class InputFields(OptionFields, kw_only=True):
    """The completion form, `input`, or the chat form, `messages`."""

    input: Annotated[Input | None, Meta(description="A text, a pair, token ids, or a list of these.")] = None
    messages: Annotated[list[dict[str, Any]] | None, Meta(description="A conversation, instead of `input`.")] = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def prompts(self) -> list[Prompt]:
        if self.messages is None:
            return input_prompts(self.input, "input")
        if self.input is not None:
            raise RequestError("Both `input` and `messages` are given; send one.", param="messages")
        if not self.messages:
            raise RequestError("`messages` is empty; a conversation needs at least one message.", param="messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        kwargs = self.chat_template_kwargs or {}
        return [
            ChatPrompt(
                self.messages, self.add_generation_prompt, self.continue_final_message, kwargs, self.chat_template
            )
        ]


def input_prompts(value: Input | None, field: str) -> list[Prompt]:
    """The prompts of a field that holds a text, a pair, token ids, or a list of them."""
    if value is None:
        raise RequestError(f"Missing required field `{field}`: a string, strings, token ids, or lists of them.", field)
    if isinstance(value, str | PairInput):
        return [_text(value, "Input", field)]
    if not value:
        raise RequestError("You must pass at least one prompt.", param=field)
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return [TokenPrompt(value)]  # type: ignore[arg-type]
    if int in kinds or (list in kinds and len(kinds) > 1):
        raise RequestError(f"`{field}` mixes strings, token ids or lists; send one kind.", param=field)
    return [
        _tokens(item, index, field) if isinstance(item, list) else _text(item, f"Input at index {index}", field)  # type: ignore[arg-type]
        for index, item in enumerate(value)
    ]


def _text(item: str | PairInput, name: str, field: str) -> TextPrompt:
    text, text_pair = (item, None) if isinstance(item, str) else (item.text, item.text_pair)
    return pair_prompt(text, text_pair, name, field)


def pair_prompt(text: str, text_pair: str | None, name: str, field: str) -> TextPrompt:
    """The first text must say something; the second may be empty. name: what messages call the first."""
    if not text:
        raise RequestError(f"{name} cannot be empty", param=field)
    if text.isspace():
        raise RequestError(f"{name} cannot be empty or whitespace only", param=field)
    return TextPrompt(text, text_pair)


def _tokens(token_ids: list[int], index: int, field: str) -> TokenPrompt:
    if not token_ids:
        raise RequestError(f"Input at index {index} cannot be empty", param=field)
    return TokenPrompt(token_ids)

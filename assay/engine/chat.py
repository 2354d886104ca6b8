"""A conversation to the text that its model was trained on: the checkpoint's own chat template, in a sandbox.

Knows no tokenizer. A template is untrusted input (docs/security.md): it can reach neither files, nor attributes of
Python, nor the clock beyond today's date, and what it may compute is in proportion to the messages.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import pass_context

from assay.engine.budget import Budget, BudgetError
from assay.engine.conversation import SPECIAL_TOKENS, text_of
from assay.engine.sandbox import MAX_SOURCE, Sandbox
from assay.errors import CheckpointError, RequestError
from assay.sequence import ChatPrompt

_MARK = "\ue000continue\ue000"  # private-use characters: no template writes them
_WIDEST = 16  # characters by which JSON is indented or separated
_LONGEST_PATTERN = 200  # characters of a date's pattern
_DATE_STEPS = 20
_MAX_STEPS = 5_000_000
_MAX_CHARACTERS = 128_000_000
# What a stranger's program raises when it fails.
_REFUSALS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, NameError, AssertionError),
    *(RecursionError, RuntimeError, MemoryError),
)


class ChatTemplate:
    """A compiled template. Raises CheckpointError when it is no valid Jinja, or too large.

    reads_pairs: it is a reranker's, with the roles `query` and `document`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE:
            raise CheckpointError(f"The chat template has {len(source)} characters; {MAX_SOURCE} are allowed.")
        self._sandbox = Sandbox(
            {"raise_exception": _raise, "strftime_now": _today},
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
        )
        self._sandbox.filters["tojson"] = _tojson
        try:
            self._template = self._sandbox.from_string(source)
        except (TemplateError, SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            # Beyond Jinja's own errors, Python's: of code that is nested too deeply, or holds too large a number.
            raise CheckpointError(f"The chat template is not valid Jinja: {error or type(error).__name__}") from error
        self._special_tokens = dict(special_tokens)
        # Told by the source: a template that prints any role would print these two as well, and mean nothing by it.
        self.reads_pairs = all(re.search(rf"""['"]{role}['"]""", source) for role in ("query", "document"))

    def render(self, prompt: ChatPrompt, contents: list[str] | None = None) -> str:
        """The conversation as text. `contents` stands in for the messages' own, e.g. after cutting.

        Raises RequestError when the template refuses the messages.
        """
        texts = contents if contents is not None else [text_of(message) for message in prompt.messages]
        messages = [{**message, "content": text} for message, text in zip(prompt.messages, texts, strict=True)]
        if prompt.continue_final_message:
            messages[-1]["content"] += _MARK + " "
        variables = {
            **self._special_tokens,
            "tools": None,
            "documents": None,
            **self._checked(prompt.template_kwargs),
            "messages": messages,
            "add_generation_prompt": prompt.add_generation_prompt,
        }
        try:
            text = self._sandbox.render(self._template, variables, _budget_for(messages, prompt.template_kwargs))
        except BudgetError as error:
            raise RequestError(f"The chat template is stopped: {error}.", "messages") from None
        except SecurityError as error:
            raise RequestError(f"The chat template tried what its sandbox forbids: {error}", "messages") from None
        except _REFUSALS as error:
            reason = str(error) or type(error).__name__
            raise RequestError(f"The chat template refuses these messages: {reason}", "messages") from None
        if not prompt.continue_final_message:
            return text
        head, found, tail = text.rpartition(_MARK)
        if not found:
            raise RequestError(
                "The chat template does not end with the final message; it cannot be continued.", "messages"
            )
        # A template that trims contents has eaten the space behind the mark, and means the one before it too.
        return head if tail.startswith(" ") else head.rstrip()

    def _checked(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request's own variables. Raises RequestError for names that are not a request's to give."""
        for name in kwargs:
            if name in self._sandbox.globals or name in SPECIAL_TOKENS:
                kind = "special token" if name in SPECIAL_TOKENS else "function"
                raise RequestError(
                    f"chat_template_kwargs holds {name!r}, a {kind} of the chat template; only its other variables "
                    "can be set.",
                    "chat_template_kwargs",
                )
        return kwargs


@pass_context
def _tojson(
    context: Any,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, it neither escapes HTML nor non-ASCII characters, as training data did not either."""
    budget: Budget = context.budget
    for text in (indent, *(separators or ())):
        if (len(text) if isinstance(text, str) else text or 0) > _WIDEST:
            raise ValueError(f"tojson indents and separates by at most {_WIDEST} characters")
    budget.walk(value)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return str(budget.made(encoder.encode(value)))
    return budget.concat(budget.made(piece) for piece in encoder.iterencode(value))


def _raise(budget: Budget, message: Any = "") -> NoReturn:
    raise TemplateError(budget.text(message))


def _today(budget: Budget, pattern: str) -> str:
    if len(pattern) > _LONGEST_PATTERN:  # each of its characters may become 256
        raise ValueError(f"strftime_now takes a pattern of at most {_LONGEST_PATTERN} characters")
    budget.step(_DATE_STEPS)
    return str(budget.made(datetime.now(UTC).strftime(pattern)))


def _budget_for(messages: list[dict[str, Any]], kwargs: Mapping[str, Any]) -> Budget:
    """In proportion to what was sent, so that many short conversations cannot cost what one long one may."""
    nodes = characters = 0
    waiting: list[Any] = [kwargs] if kwargs else []
    for message in messages:
        nodes += len(message) + 1
        for value in message.values():
            if type(value) is str:
                characters += len(value)
            else:
                waiting.append(value)
    while waiting:
        value = waiting.pop()
        if type(value) is str:
            characters += len(value)
        elif isinstance(value, dict):
            nodes += len(value) + 1
            waiting.extend(value.values())
        elif isinstance(value, list):
            nodes += len(value) + 1
            waiting.extend(value)
    # Some templates look through all messages at each, or append to one text: what they do grows with the square.
    steps = 100_000 + (500 + 10 * len(messages)) * nodes + characters
    return Budget(min(steps, _MAX_STEPS), min(1_000_000 + (32 + 4 * len(messages)) * characters, _MAX_CHARACTERS))


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what a model wrote, for training; its body is rendered as is."""

    tags = {"generation"}  # noqa: RUF012, jinja2's own protocol

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()

"""A conversation to the text that its model was trained on: the checkpoint's own chat template, in a sandbox.

Knows no tokenizer. A template is untrusted input: it can reach neither files, nor attributes of Python, nor the clock
beyond today's date.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from assay.errors import CheckpointError, RequestError
from assay.sequence import ChatPrompt

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MARK = "\ue000continue\ue000"  # private-use characters: no template writes them


class ChatTemplate:
    """A compiled template. Raises CheckpointError when it is no valid Jinja.

    reads_pairs: it is a reranker's, with the roles `query` and `document`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda pattern: datetime.now(UTC).strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError(f"The chat template is not valid Jinja: {error}") from error
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
        try:
            text = self._template.render(
                {
                    **self._special_tokens,
                    "tools": None,
                    "documents": None,
                    **prompt.template_kwargs,
                    "messages": messages,
                    "add_generation_prompt": prompt.add_generation_prompt,
                }
            )
        except SecurityError as error:
            raise RequestError(f"The chat template tried what its sandbox forbids: {error}", "messages") from None
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, IndexError) as error:
            raise RequestError(f"The chat template refuses these messages: {error}", "messages") from None
        if not prompt.continue_final_message:
            return text
        head, found, tail = text.rpartition(_MARK)
        if not found:
            raise RequestError(
                "The chat template does not end with the final message; it cannot be continued.", "messages"
            )
        # A template that trims contents has eaten the space behind the mark, and means the one before it too.
        return head if tail.startswith(" ") else head.rstrip()


def load_chat_template(folder: Path, config: Mapping[str, Any], override: Path | None = None) -> ChatTemplate | None:
    """The operator's template, else chat_template.jinja, else tokenizer_config.json's; None where there is none."""
    tokens = {name: token for name in _SPECIAL_TOKENS if (token := _token_text(config.get(name)))}
    if override is not None:
        try:
            return ChatTemplate(override.read_text("utf-8"), tokens)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"The chat template {override} cannot be read: {error}") from error
    path = folder / "chat_template.jinja"
    try:
        source = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several named ones
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"The chat template of {folder} cannot be read.") from error
    return None if source is None else ChatTemplate(str(source), tokens)


def text_of(message: Mapping[str, Any]) -> str:
    """A message's content as text; content parts are joined by line breaks. Raises RequestError for other parts."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise RequestError("A message's content must be text: a string, or parts of type text.", "messages")
        texts.append(text)
    return "\n".join(texts)


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """Unlike Jinja's own, it neither escapes HTML nor non-ASCII characters, as training data did not either."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what a model wrote, for training; its body is rendered as is."""

    tags = {"generation"}  # noqa: RUF012, jinja2's own protocol

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()

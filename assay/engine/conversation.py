"""What a checkpoint and a caller say of a conversation: the template's source, its special tokens, a message's text.

Knows no template engine (`chat` does), which a model without conversations never loads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.errors import CheckpointError, RequestError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def template_source(folder: Path, config: Mapping[str, Any], override: Path | None = None) -> str | None:
    """The operator's template, else chat_template.jinja, else tokenizer_config.json's; None where there is none.

    config: what tokenizer_config.json holds. Raises CheckpointError for what cannot be read.
    """
    if override is not None:
        try:
            return override.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"The chat template {override} cannot be read: {error}") from error
    path = folder / "chat_template.jinja"
    try:
        source = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several named ones
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"The chat template of {folder} cannot be read.") from error
    return None if source is None else str(source)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that templates may name, from tokenizer_config.json."""
    return {name: token for name in SPECIAL_TOKENS if (token := _token_text(config.get(name)))}


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

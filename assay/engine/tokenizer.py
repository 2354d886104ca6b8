"""A checkpoint's own tokenizer, from whatever files it has. Knows no prompt and no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from assay.engine.conversation import special_tokens, template_source
from assay.engine.vocabularies import build_tokenizer
from assay.errors import CheckpointError, ConfigError
from assay.model.reference import classifiers, load_reference_tokenizer
from assay.model.weights import read_json
from assay.sequence import TruncationSide

if TYPE_CHECKING:
    from assay.engine.chat import ChatTemplate

# tokenizer_config.json writes "no limit" as 1e30.
_NO_LIMIT = 1e20


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A tokenizer and what its checkpoint says of it.

    model_max_length: None where the config sets no real limit.
    chat_template: None where the checkpoint has none.
    special_tokens: as templates name them.
    suffix_id: a token that every text and conversation must end with (InternLM2's reward token).
    """

    tokenizer: Tokenizer
    model_max_length: int | None
    truncation_side: TruncationSide
    chat_template: "ChatTemplate | None" = None
    suffix_id: int | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def load_tokenizer(folder: Path, chat_template: Path | None = None) -> TextTokenizer:
    """The tokenizer of a checkpoint folder. Raises CheckpointError when it is missing or broken."""
    model_config, config = (_json_or_nothing(folder / name) for name in ("config.json", "tokenizer_config.json"))
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    elif (folder / "vocab.txt").is_file() or (folder / "merges.txt").is_file():
        tokenizer = build_tokenizer(folder, config, str(model_config.get("model_type") or ""))
    elif any(folder.glob("*.model")):
        tokenizer = _from_sentencepiece(folder)
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, no vocab.txt, no merges.txt and no SentencePiece model."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    suffix_id = model_config.get("reward_token_id")
    if suffix_id is not None and (type(suffix_id) is not int or suffix_id < 0):
        raise CheckpointError(f"config.json: reward_token_id is {suffix_id!r}; it must be a token id.")
    limit = config.get("model_max_length")
    special = special_tokens(config)
    return TextTokenizer(
        tokenizer,
        model_max_length=int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None,
        truncation_side="left" if config.get("truncation_side") == "left" else "right",
        chat_template=_compiled(template_source(folder, config, chat_template), special),
        suffix_id=suffix_id,
        special_tokens=special,
    )


def _compiled(source: str | None, special: Mapping[str, str]) -> "ChatTemplate | None":
    if source is None:
        return None
    from assay.engine.chat import ChatTemplate  # with Jinja, which a model without a template does not need

    return ChatTemplate(source, special)


def _from_sentencepiece(folder: Path) -> Tokenizer:
    """What transformers makes of a SentencePiece model: converted at every start, so a tokenizer.json is better."""
    classifiers()  # says so where transformers is not installed
    backend = getattr(load_reference_tokenizer(folder), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CheckpointError(f"transformers has no fast tokenizer for {folder}; save it once as tokenizer.json.")
    return backend


def _json_or_nothing(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def answer_token_ids(tokens: str | None, tokenizer: Tokenizer) -> tuple[int, ...] | None:
    """The ids of `no,yes` (or of one token alone). Raises ConfigError for what is not one token each."""
    if tokens is None:
        return None
    names = [name.strip() for name in tokens.split(",")]
    if not 1 <= len(names) <= 2 or not all(names):
        raise ConfigError(f"classifier_from_token is {tokens!r}; give two tokens, like no,yes, or one.")
    ids = [tokenizer.encode(name, add_special_tokens=False).ids for name in names]
    for name, pieces in zip(names, ids, strict=True):
        if len(pieces) != 1:
            raise ConfigError(f"classifier_from_token: {name!r} is {len(pieces)} tokens in this vocabulary, not one.")
    return tuple(pieces[0] for pieces in ids)

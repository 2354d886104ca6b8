"""Tokenizers of checkpoints that carry no tokenizer.json, built from vocab.txt or from vocab.json and merges.txt.

Knows BERT's WordPiece and the byte-level BPE of GPT-2, RoBERTa and Qwen2, as their classes in transformers define them.
SentencePiece models are not read here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from assay.errors import CheckpointError

Config = Mapping[str, Any]

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(folder: Path, config: Config, model_type: str) -> Tokenizer:
    """The tokenizer that a folder's vocabulary files and its tokenizer_config.json describe.

    model_type: from config.json; decides where tokenizer_config.json names no `tokenizer_class`.
    Raises CheckpointError when the files or the class are not among those above.
    """
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    kind = named or _CLASS_OF_MODEL_TYPE.get(model_type, "")
    if kind not in _BUILDERS:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and the tokenizer class {kind or 'is not named'!r} cannot be built from "
            f"other files; those that can are {', '.join(_BUILDERS)}. Save it once with transformers to get one."
        )
    try:
        tokenizer = _BUILDERS[kind](folder, config)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{folder}: the vocabulary files cannot be read: {error}") from error
    _add_tokens(tokenizer, config)
    return tokenizer


def _word_piece(folder: Path, config: Config) -> Tokenizer:
    unk, cls, sep = (_named(config, f"{name}_token", f"[{name.upper()}]") for name in ("unk", "cls", "sep"))
    lines = (folder / "vocab.txt").read_text("utf-8").splitlines()
    vocab = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    specials = [unk, cls, sep, _named(config, "pad_token", "[PAD]"), _named(config, "mask_token", "[MASK]")]
    tokenizer.add_special_tokens([token for token in specials if token in vocab])
    return tokenizer


def _bpe(folder: Path) -> Tokenizer:
    vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return Tokenizer(models.BPE(vocab, merges))


def _gpt2(folder: Path, config: Config) -> Tokenizer:
    tokenizer = _bpe(folder)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    tokenizer.add_special_tokens([_named(config, "eos_token", "<|endoftext|>")])
    return tokenizer


def _roberta(folder: Path, config: Config) -> Tokenizer:
    tokenizer = _bpe(folder)
    prefix = bool(config.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    sep, cls = _named(config, "sep_token", "</s>"), _named(config, "cls_token", "<s>")
    tokenizer.add_special_tokens([cls, _named(config, "pad_token", "<pad>"), sep, _named(config, "unk_token", "<unk>")])
    # The mask stands for a word and takes the space before it.
    tokenizer.add_special_tokens([AddedToken(_named(config, "mask_token", "<mask>"), lstrip=True, special=True)])
    vocab = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]), True, prefix)
    return tokenizer


def _qwen2(folder: Path, config: Config) -> Tokenizer:
    tokenizer = _bpe(folder)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False),
        ]
    )
    return tokenizer


_BUILDERS: dict[str, Callable[[Path, Config], Tokenizer]] = {
    "BertTokenizer": _word_piece,
    "DistilBertTokenizer": _word_piece,
    "ElectraTokenizer": _word_piece,
    "GPT2Tokenizer": _gpt2,
    "RobertaTokenizer": _roberta,
    "Qwen2Tokenizer": _qwen2,
}
_CLASS_OF_MODEL_TYPE = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}


def _named(config: Config, key: str, default: str) -> str:
    """A special token's text; configs write it as a string or as an object with `content`."""
    token = config.get(key)
    if isinstance(token, Mapping):
        token = token.get("content")
    return str(token or default)


def _add_tokens(tokenizer: Tokenizer, config: Config) -> None:
    """Tokens that were added after training, in the order of their ids so that each gets its own."""
    added = config.get("added_tokens_decoder") or {}
    for token_id, token in sorted(added.items(), key=lambda item: int(item[0])):
        tokenizer.add_tokens(
            [
                AddedToken(
                    token["content"],
                    single_word=token.get("single_word", False),
                    lstrip=token.get("lstrip", False),
                    rstrip=token.get("rstrip", False),
                    normalized=token.get("normalized", not token.get("special", False)),
                    special=token.get("special", False),
                )
            ]
        )
        if tokenizer.token_to_id(token["content"]) != int(token_id):
            raise CheckpointError(
                f"tokenizer_config.json gives {token['content']!r} the id {token_id}, but the vocabulary files give it "
                f"{tokenizer.token_to_id(token['content'])}."
            )

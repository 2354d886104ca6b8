"""The WordPiece vocabulary: emoji added, rare pieces pruned, a tokenizer around it. Knows texts, not weights."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_tokenizer(pieces: Sequence[str]) -> Tokenizer:
    """An uncased BERT tokenizer whose ids are the positions in `pieces`; no truncation, no padding."""
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(clean_text=True, handle_chinese_chars=True, lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = WordPieceDecoder(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary in the order of its ids."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(vocab, key=lambda piece: vocab[piece])


def count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each normalized, pre-tokenized word occurs."""
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    words: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    return words


def frequent_symbols(words: Counter[str], known: Iterable[str], min_count: int) -> list[str]:
    """Symbols (emoji, skin tones) outside the vocabulary that occur `min_count` times or more, commonest first."""
    known = set(known)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            if character not in known and unicodedata.category(character) in ("So", "Sk"):
                counts[character] += count
    common = [symbol for symbol, count in counts.most_common() if count >= min_count]
    return [symbol for symbol in common if "BRAILLE" not in unicodedata.name(symbol, "BRAILLE")]  # pictures in dots


def name_of(symbol: str) -> str:
    """A symbol in words, as Unicode names it: '😂' is 'face with tears of joy'."""
    return unicodedata.name(symbol.removeprefix("##"), "symbol").lower().replace("-", " ")


def _must_keep(piece: str, seen: set[str]) -> bool:
    """Special tokens, and single characters that are Latin, ASCII or seen: so that any Latin text can be spelled."""
    character = piece.removeprefix("##")
    if piece in SPECIAL_TOKENS:
        return True
    if len(character) != 1:
        return False
    return character.isascii() or character in seen or unicodedata.name(character, "").startswith("LATIN")


def prune(pieces: Sequence[str], words: Counter[str], size: int, rounds: int = 3) -> list[str]:
    """The `size` pieces that serve `words` best: those that must stay, then the most used.

    A piece that goes is spelled with others, which changes what is most used: hence rounds. Ties keep BERT's order,
    which is roughly the order of frequency in general English.
    """
    seen = {character for word in words for character in word}
    order = {piece: position for position, piece in enumerate(pieces)}
    kept = [piece for piece in pieces if _must_keep(piece, seen)]
    required = set(kept)
    counts = _count_pieces(pieces, words)
    vocabulary = list(pieces)
    for _ in range(rounds):
        optional = sorted((p for p in pieces if p not in required), key=lambda p: (-counts[p], order[p]))
        vocabulary = kept + optional[: size - len(kept)]
        counts = _count_pieces(vocabulary, words) | Counter({p: counts[p] for p in pieces if p not in set(vocabulary)})
    rest = sorted(set(vocabulary) - set(SPECIAL_TOKENS), key=lambda piece: order[piece])
    return [*SPECIAL_TOKENS, *rest]


def _count_pieces(pieces: Sequence[str], words: Counter[str]) -> Counter[str]:
    tokenizer = build_tokenizer(pieces)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for token in tokenizer.model.tokenize(word):
            counts[token.value] += count
    return counts

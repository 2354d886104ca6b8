"""Which tokens stay when a text is too long: cut to a limit, or into overlapping windows. Knows no tokenizer.

`owners` says of each token whose it is: None for special ones, 0 for the first text, 1 for the second one of a pair.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq

from assay.errors import RequestError
from assay.sequence import TruncationSide

Owners = Seq[int | None]


def kept_places(owners: Owners, limit: int, side: TruncationSide) -> list[int]:
    """Places that stay when texts are cut to `limit`: every special token, and of each text its start or end.

    By hand: the library keeps all that it cuts off, for a pair in every combination.
    """
    places = [i for i, owner in enumerate(owners) if owner is None]
    texts = [[i for i, owner in enumerate(owners) if owner == text] for text in (0, 1)]
    room = limit - len(places)
    if room < 1:
        raise RequestError(
            f"truncate_prompt_tokens is {limit}, which leaves no room beside this model's special tokens.",
            param="truncate_prompt_tokens",
        )
    for text, length in zip(texts, longest_first(len(texts[0]), len(texts[1]), room), strict=True):
        places += text[len(text) - length :] if side == "left" else text[:length]
    return sorted(places)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of a pair cut to `room` by taking tokens off the longer text, as transformers' `longest_first` does."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def cut_text(text: str, offsets: Seq[tuple[int, int]], longest: int, side: TruncationSide) -> str:
    """The first or last `longest` tokens of a text. offsets: each token's characters."""
    if len(offsets) <= longest:
        return text
    if longest == 0:
        return ""
    return text[offsets[-longest][0] :] if side == "left" else text[: offsets[longest - 1][1]]


def window_places(owners: Owners, size: int, overlap: int | None) -> Iterator[tuple[list[int], list[int]]]:
    """Windows of at most `size` tokens over the last text: all places of each, and those that are the window's text.

    Special tokens and a pair's first text are in every window. Windows are equally long and equally far apart, so that
    none is a leftover; neighbours share at least `overlap` tokens (None: a quarter of a window's text).
    """
    windowed = 1 if 1 in owners else 0
    text = [i for i, owner in enumerate(owners) if owner == windowed]
    others = [i for i, owner in enumerate(owners) if owner != windowed]
    room = size - len(others)
    if room * 4 < size:
        raise RequestError(
            f"A window has {size} tokens, of which {len(others)} are special ones or the pair's first text; at least a "
            "quarter must be left for the text itself. Shorten the first text, or raise window_size.",
            param="window_size",
        )
    shared = room // 4 if overlap is None else overlap
    if shared > room // 2:
        raise RequestError(
            f"window_overlap is {shared}; it may be at most half of the {room} tokens that a window has for its text.",
            param="window_overlap",
        )
    spare = max(len(text) - room, 0)
    count = -(-spare // (room - shared)) + 1
    for i in range(count):
        start = spare * i // (count - 1) if i else 0
        places = text[start : start + room]
        yield sorted(others + places), places

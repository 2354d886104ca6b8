"""W1, the texts that everything is measured with: lengths lognormal, median 40 tokens, at most 512, seeded.

Texts are GoEmotions comments laid end to end and cut where they have exactly so many tokens; where those are not at
hand, words made of syllables. Knows no model: one tokenizer cuts for all, and each model's own count is reported.
"""

import json
import random
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

from benchmarks.models import BUILD, MODELS, REPOSITORY, folder_of

MEDIAN, SIGMA, SHORTEST, LONGEST = 40, 1.0, 4, 512
_COMMENTS = REPOSITORY.parent / "shared" / "data" / "goemotions" / "train.tsv"
_SYLLABLES = ("ba", "co", "di", "fu", "ga", "he", "ki", "lo", "me", "nu", "pa", "ri", "so", "ta", "ve", "wi", "xo")


def lengths(count: int, seed: int = 0) -> list[int]:
    """The lognormal's own quantiles in a seeded order, so that few texts are as typical as many."""
    normal = NormalDist()
    drawn = [MEDIAN * 2.718281828 ** (SIGMA * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    clipped = [min(LONGEST, max(SHORTEST, round(length))) for length in drawn]
    random.Random(seed).shuffle(clipped)
    return clipped


def texts(count: int, seed: int = 0) -> list[str]:
    """W1."""
    return texts_of(lengths(count, seed), seed)


def texts_of(wanted: list[int], seed: int = 0) -> list[str]:
    """A text of exactly so many tokens, its special ones included, for each; all different."""
    tokenizer = _tokenizer()
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    comments = list(_comments())
    random.Random(seed).shuffle(comments)
    made: dict[str, None] = {}
    supply = iter(comments * 50)
    for length in wanted:
        text = next(supply)
        while True:
            offsets = tokenizer.encode(text, add_special_tokens=False).offsets
            if len(offsets) >= length - special:
                cut = text[: offsets[length - special - 1][1]]
                if cut not in made and len(tokenizer.encode(cut).ids) == length:
                    break
                text = next(supply)  # there already, or cut within a word whose pieces then merge in another way
            else:
                text += " " + next(supply)
        made[cut] = None
    return list(made)


def describe(texts: list[str], tokens: list[int]) -> dict[str, Any]:
    """For the results: what was measured, counted by the model's own tokenizer."""
    ordered = sorted(tokens)
    return {
        "texts": len(texts),
        "source": "GoEmotions comments" if _COMMENTS.is_file() else "words made of syllables",
        "tokens": sum(tokens),
        "median_tokens": ordered[len(ordered) // 2],
        "longest": ordered[-1],
    }


def saved(name: str, content: list[str]) -> Path:
    """The texts in a file, for contenders in other processes."""
    path = BUILD / "texts" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


@cache
def _comments() -> tuple[str, ...]:
    if _COMMENTS.is_file():
        return tuple(line.split("\t")[0] for line in _COMMENTS.read_text("utf-8").splitlines())
    generator = random.Random(0)

    def word() -> str:
        return "".join(generator.choices(_SYLLABLES, k=generator.randint(1, 3)))

    return tuple(" ".join(word() for _ in range(generator.randint(5, 20))) for _ in range(20_000))


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder_of(MODELS["tiny"]) / "tokenizer.json"))

"""One random checkpoint of every native family, and sequences to score with it, for what must hold for all of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.sequence import Sequence
from tests.tiny import bert_vocab, save_bert
from tests.tiny_decoders import FAMILIES as DECODERS
from tests.tiny_decoders import VOCAB, save_decoder
from tests.tiny_encoders import KINDS, save_encoder
from tests.tiny_modern import save_deberta, save_modernbert

LONGEST = 20
_SIZE = len(bert_vocab())


@dataclass(frozen=True, slots=True)
class Native:
    """save: into a folder, with more of config.json's fields. vocab_size, types: of the ids that it reads."""

    save: Callable[..., Any]
    vocab_size: int
    types: int = 1


def _encoder(kind: str) -> Native:
    def save(folder: Path, **config: Any) -> Any:
        return save_encoder(folder, kind, **config)

    return Native(save, _SIZE)


def _decoder(family: str) -> Native:
    def save(folder: Path, **config: Any) -> Any:
        return save_decoder(folder, family, **config)

    return Native(save, VOCAB)


NATIVE = {
    "bert": Native(save_bert, _SIZE, 2),
    **{kind: _encoder(kind) for kind in KINDS},
    "deberta": Native(save_deberta, _SIZE),
    "modernbert": Native(save_modernbert, _SIZE),
    **{family: _decoder(family) for family in DECODERS},
}


def sequences_for(native: Native, seed: int = 0, count: int = 24) -> list[Sequence]:
    """Random ids of random lengths, many of them equal."""
    rng = random.Random(seed)
    lengths = rng.choices(range(1, LONGEST + 1), k=count)
    return [
        Sequence(rng.choices(range(native.vocab_size), k=n), sorted(rng.choices(range(native.types), k=n)))
        for n in lengths
    ]

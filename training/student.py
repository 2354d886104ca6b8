"""The student: the teacher with fewer word pieces and narrower layers, taught by the teacher's probabilities."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertForSequenceClassification

from training.batches import Batch, Encoded, encode, shuffled
from training.fit import Recipe, fit, predict
from training.goemotions import Split
from training.prune import cut, neuron_importance
from training.vocabulary import build_tokenizer, count_words, pieces_of, prune

MAX_TOKENS = 64
RECIPE = Recipe(epochs=7, lr=2e-4)


@dataclass(frozen=True)
class Shape:
    """What is left of the teacher. About 9.8 million parameters: 19.7 MB in float16."""

    pieces: int = 6300
    layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    width: int = 768


SHAPE = Shape()
TEACHER_SHARE = 0.7
"""Weight of the teacher's probability against the rater's label in a target."""
INVENTED_SHARE = 0.5
"""Invented texts in an epoch, as a share of the real ones."""
TEXTS_FOR_IMPORTANCE = 6400


def train_student(teacher_folder: Path, train: Split, dev: Split, best: Path) -> None:
    """Prune, then distil; the best epoch on dev and its tokenizer.json end in `best`."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    teacher = BertForSequenceClassification.from_pretrained(teacher_folder)
    teacher_tokenizer = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    real = encode(teacher_tokenizer, train.texts, train.targets, MAX_TOKENS)
    student, tokenizer = _cut_student(teacher, teacher_tokenizer, train, real, generator)
    best.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(best / "tokenizer.json"))

    taught = TEACHER_SHARE * _ask(teacher, real) + (1 - TEACHER_SHARE) * train.targets
    invented = int(len(train.texts) * INVENTED_SHARE)
    batches = -(-(len(train.texts) + invented) // RECIPE.batch_size)

    def epoch(number: int) -> tuple[int, Iterator[Batch]]:
        def batches_of_epoch() -> Iterator[Batch]:
            texts = invent(train.texts, invented, random.Random(number))
            answers = _ask(teacher, encode(teacher_tokenizer, texts, torch.empty(len(texts), 0), MAX_TOKENS))
            data = encode(tokenizer, train.texts + texts, torch.cat([taught, answers]), MAX_TOKENS)
            yield from shuffled(data, RECIPE.batch_size, generator)

        return batches, batches_of_epoch()

    fit(
        student,
        epoch,
        lambda logits, batch: binary_cross_entropy_with_logits(logits, batch.targets),
        encode(tokenizer, dev.texts, dev.targets, MAX_TOKENS),
        RECIPE,
        best,
    )


def _cut_student(
    teacher: BertForSequenceClassification,
    teacher_tokenizer: Tokenizer,
    train: Split,
    real: Encoded,
    generator: torch.Generator,
) -> tuple[BertForSequenceClassification, Tokenizer]:
    pieces = prune(pieces_of(teacher_tokenizer), count_words(teacher_tokenizer, train.texts), SHAPE.pieces)
    chosen = torch.randperm(len(real.token_ids), generator=generator)[:TEXTS_FOR_IMPORTANCE]
    sample = Encoded([real.token_ids[row] for row in chosen.tolist()], real.targets[chosen])
    importance = neuron_importance(teacher, shuffled(sample, 64, generator))
    student = cut(teacher, teacher_tokenizer, pieces, SHAPE.layers, SHAPE.width, importance)
    return student, build_tokenizer(pieces)


def invent(texts: list[str], count: int, rng: random.Random) -> list[str]:
    """Texts that nobody wrote: the head of one and the tail of another, or one with a tenth of its words gone."""
    made: list[str] = []
    while len(made) < count:
        words = rng.choice(texts).split()
        if rng.random() < 0.5:
            other = rng.choice(texts).split()
            words = words[: rng.randint(1, max(1, len(words)))] + other[rng.randint(0, len(other)) :]
        words = [word for word in words if rng.random() > 0.1]
        if words:
            made.append(" ".join(words))
    return made


def _ask(teacher: BertForSequenceClassification, data: Encoded) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.from_numpy(predict(teacher, data))

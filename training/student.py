"""The student: the teacher with fewer word pieces and narrower layers, taught by raters and teacher together."""

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
RECIPE = Recipe(epochs=4, warmup_steps=300, decay_steps=2034, lr=2e-4)


@dataclass(frozen=True)
class Shape:
    """What is left of the teacher. About 9.84 million parameters: 19.7 MB in float16."""

    pieces: int = 6200
    layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    width: int = 768


SHAPE = Shape()
TEACHER_SHARE = 0.5
"""Weight of the teacher's probability against the rater's label in a target."""
TEXTS_FOR_IMPORTANCE = 1600
THINNED_SHARE = 0.5
"""Texts that lose words in an epoch, and `WORD_DROPOUT` the share of words that they lose."""
WORD_DROPOUT = 0.1


def train_student(teacher_folder: Path, train: Split, dev: Split, best: Path) -> None:
    """Prune, then distil; the best epoch on dev and its tokenizer.json end in `best`."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    teacher = BertForSequenceClassification.from_pretrained(teacher_folder)
    teacher_tokenizer = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    real = encode(teacher_tokenizer, train.texts, train.targets, MAX_TOKENS)
    student, tokenizer = _cut_student(teacher, teacher_tokenizer, train, real, generator)
    best.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(best / "tokenizer.json"), pretty=False)

    with torch.autocast("cpu", torch.bfloat16):
        answers = torch.from_numpy(predict(teacher, real))
    targets = TEACHER_SHARE * answers + (1 - TEACHER_SHARE) * train.targets
    weights = positive_weights(train.targets)
    batches = -(-len(train.texts) // RECIPE.batch_size)

    def epoch(number: int) -> tuple[int, Iterator[Batch]]:
        data = encode(tokenizer, thin(train.texts, random.Random(number)), targets, MAX_TOKENS)
        return batches, shuffled(data, RECIPE.batch_size, generator)

    fit(
        student,
        epoch,
        lambda logits, batch: binary_cross_entropy_with_logits(logits, batch.targets, pos_weight=weights),
        encode(tokenizer, dev.texts, dev.targets, MAX_TOKENS),
        RECIPE,
        best,
    )


def positive_weights(targets: Tensor) -> Tensor:
    """For each label `[labels]` the square root of its negatives per positive: 1.4 for neutral, 24 for grief.

    Without it the five labels with fewer than 400 texts are not learned in this many epochs. A probability's odds come
    out larger by this factor, which also brings the best single threshold near one half.
    """
    positives = targets.sum(dim=0)
    return ((len(targets) - positives) / positives).sqrt()


def thin(texts: list[str], rng: random.Random) -> list[str]:
    """The texts, some of them with some words gone: a student that sees a text often should not learn it by heart."""
    thinned: list[str] = []
    for text in texts:
        words = text.split()
        if rng.random() < THINNED_SHARE:
            words = [word for word in words if rng.random() > WORD_DROPOUT] or words
        thinned.append(" ".join(words))
    return thinned


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

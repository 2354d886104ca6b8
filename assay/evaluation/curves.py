"""What becomes of decisions as the threshold moves, and how often a probability comes true. Knows no drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.evaluation.metrics import BINS, Bools, MultiLabel, SingleLabel, bins_of
from assay.evaluation.ranking import Floats

THRESHOLDS = np.round(np.arange(0, 1.001, 0.01), 2)


@dataclass(frozen=True, slots=True)
class Curves:
    """Of labels at each of THRESHOLDS: precision, recall, f1 [thresholds, judged]; of all: macro_f1, micro_f1
    [thresholds]. Labels that no row has are NaN, and not in the mean.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    macro_f1: Floats
    micro_f1: Floats

    def best(self) -> dict[str, float] | None:
        """Where one threshold for all labels does best on this very data; None where no row has a label."""
        if np.isnan(self.macro_f1).all():
            return None
        place = int(np.nanargmax(self.macro_f1))
        return {"threshold": float(THRESHOLDS[place]), "macro_f1": float(self.macro_f1[place])}

    def as_json(self) -> list[dict[str, float]]:
        columns = {"threshold": THRESHOLDS, "macro_f1": self.macro_f1, "micro_f1": self.micro_f1}
        return _rows(columns)


def threshold_curves(probs: Floats, truth: Bools) -> Curves:
    """probs, truth: [rows, judged]; a label is given at the threshold or above."""
    support = truth.sum(axis=0)
    claims, hits = (_at_or_above(probs, which) for which in (np.ones_like(truth), truth))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(claims > 0, hits / claims, np.nan)
        recall = np.where(support > 0, hits / support, np.nan)
        f1 = np.where(support > 0, 2 * hits / (claims + support), np.nan)
        micro = 2 * hits.sum(axis=1) / (claims + support).sum(axis=1)
    occurring = f1[:, support > 0]
    macro = occurring.mean(axis=1) if occurring.shape[1] else np.full(len(f1), np.nan)
    return Curves(precision, recall, f1, macro, micro)


def _at_or_above(probs: Floats, which: Bools) -> Floats:
    """How many of `which` [rows, judged] have at least each threshold: [thresholds, judged]."""
    counts = []
    for column, chosen in zip(probs.T, which.T, strict=True):
        ordered = np.sort(column[chosen])
        counts.append(len(ordered) - np.searchsorted(ordered, THRESHOLDS, side="left"))
    return np.stack(counts, axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of labels that exclude each other, where only answers of at least each of THRESHOLDS are taken: the share of rows
    that are answered, and of these the share that is right (NaN where none is). [thresholds]
    """

    answered: Floats
    right: Floats

    def as_json(self) -> list[dict[str, float]]:
        return _rows({"threshold": THRESHOLDS, "answered": self.answered, "right": self.right})


def coverage(judged: SingleLabel) -> Coverage:
    confidence = judged.probs.max(axis=1)[:, None]
    right = judged.right()[:, None]
    answered = _at_or_above(confidence, np.ones_like(right))[:, 0]
    hits = _at_or_above(confidence, right)[:, 0]
    with np.errstate(invalid="ignore"):
        return Coverage(answered / judged.rows, np.where(answered > 0, hits / np.maximum(answered, 1), np.nan))


def _rows(columns: dict[str, Floats]) -> list[dict[str, float]]:
    return [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True, slots=True)
class Reliability:
    """By bin of probability: how many there are, their mean probability, and how many came true (NaN where empty)."""

    count: NDArray[np.int64]
    confidence: Floats
    true_share: Floats

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"from": i / BINS, "to": (i + 1) / BINS, "count": int(n), "confidence": float(c), "true_share": float(t)}
            for i, (n, c, t) in enumerate(zip(self.count, self.confidence, self.true_share, strict=True))
        ]


def reliability(judged: SingleLabel | MultiLabel) -> Reliability:
    """Of the winning label's probability where labels exclude each other; else of every label's, taken together."""
    if isinstance(judged, SingleLabel):
        probs, truth = judged.probs.max(axis=1), judged.right()
    else:
        probs, truth = judged.probs.ravel(), judged.targets.ravel()
    places = bins_of(probs)
    count = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(places, probs, BINS) / count
        return Reliability(count, confidence, np.bincount(places, truth, BINS) / count)


@dataclass(frozen=True, slots=True)
class Confusion:
    """counts [labels, labels]: of the rows that have the label of the row, how many were given that of the column.

    support [labels]: how many have it; where labels do not exclude each other, each is given any number of them.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    support: NDArray[np.int64]


def confusion(judged: SingleLabel | MultiLabel, labels: Sequence[str]) -> Confusion:
    """labels: those that are judged. Of a single one, which rows have or have not, it and "not it"."""
    truth, decided = (judged.truth if isinstance(judged, SingleLabel) else judged.targets), judged.decided
    names = tuple(labels)
    if len(names) == 1:
        truth, decided = (np.concatenate([~which, which], axis=1) for which in (truth, decided))
        names = (f"not {names[0]}", names[0])
    counts = truth.T.astype(np.int64) @ decided.astype(np.int64)
    return Confusion(names, counts, truth.sum(axis=0))

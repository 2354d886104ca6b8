"""Multi-label scores and the choice of thresholds. Knows arrays of probabilities; nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

Floats = NDArray[np.float32]

GRID = np.round(np.arange(0.02, 0.91, 0.01), 2)


@dataclass(frozen=True)
class Scores:
    """What is reported of one model on one split, at given thresholds."""

    macro_f1: float
    micro_f1: float
    macro_average_precision: float
    per_label: list[dict[str, float]]


def score(targets: Floats, probs: Floats, thresholds: float | Floats) -> Scores:
    """Both arrays `[texts, labels]`; `thresholds` one number or one for each label."""
    chosen = probs >= thresholds
    precision, recall, f1, support = precision_recall_fscore_support(targets, chosen, average=None, zero_division=0)
    micro = precision_recall_fscore_support(targets, chosen, average="micro", zero_division=0)[2]
    per_label = [
        {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for p, r, f, s in zip(precision, recall, f1, support, strict=True)
    ]
    average_precision = float(average_precision_score(targets, probs, average="macro"))
    return Scores(float(f1.mean()), float(micro), average_precision, per_label)


def best_threshold(targets: Floats, probs: Floats) -> float:
    """The one threshold, on a grid of hundredths, with the highest macro-F1. Give it dev, never test."""
    return float(GRID[int(np.argmax(_f1_grid(targets, probs).mean(axis=1)))])


def best_thresholds(targets: Floats, probs: Floats) -> Floats:
    """For each label the threshold with its highest F1, smoothed over neighbours since rare labels are noisy on dev."""
    grid = _f1_grid(targets, probs)
    padded = np.pad(grid, ((2, 2), (0, 0)), mode="edge")
    smooth = sum(padded[i : i + len(grid)] for i in range(5))
    return np.asarray(GRID[np.argmax(smooth, axis=0)], dtype=np.float32)


def _f1_grid(targets: Floats, probs: Floats) -> NDArray[np.float64]:
    """F1 `[thresholds, labels]`."""
    truth = targets > 0.5
    positives = truth.sum(axis=0)
    rows = []
    for threshold in GRID:
        chosen = probs >= threshold
        hits = (chosen & truth).sum(axis=0)
        rows.append(2 * hits / np.maximum(chosen.sum(axis=0) + positives, 1))
    return np.stack(rows)

"""What is measured of scores whose truth is known, for many weightings of the rows at once. Knows no model and no file.

A weighting of ones gives the value itself, one by how often each row was drawn a bootstrap resample: the value and its
interval come of one formula. Each agrees with scikit-learn's and scipy's (tests/test_evaluation_metrics.py).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from assay.evaluation.ranking import Floats, Ranked

BINS = 15
"""Of the expected calibration error, of equal width (Guo et al. 2017)."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Metric:
    """How a number is called, and which way is better."""

    title: str
    better: Literal["higher", "lower", "neither"] = "higher"


METRICS = {
    "accuracy": Metric("accuracy"),
    "exact_match": Metric("all labels right"),
    "macro_f1": Metric("macro F1"),
    "micro_f1": Metric("micro F1"),
    "roc_auc": Metric("ROC-AUC (macro)"),
    "average_precision": Metric("average precision (macro)"),
    "log_loss": Metric("log loss", "lower"),
    "brier": Metric("Brier score", "lower"),
    "ece": Metric("calibration error (ECE)", "lower"),
    "pearson": Metric("Pearson correlation"),
    "spearman": Metric("Spearman correlation"),
    "mae": Metric("mean absolute error", "lower"),
    "rmse": Metric("root mean squared error", "lower"),
    "margin": Metric("mean margin", "neither"),
}
INFLATED = frozenset({"ece"})
"""Sums of absolute gaps: of noisier rows larger, so of a resample larger than of the rows themselves."""


class Judged(Protocol):
    """Rows with a truth and scores. Results are by a metric's name."""

    rows: int

    def measure(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """weights [resamples, rows] → (of all: [resamples], of each label: [resamples, judged])."""

    def right(self) -> Bools:
        """Whether each row is judged right, [rows]: what McNemar's test compares."""


def label_rates(weights: Floats, truth: Bools, said: Bools) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Precision, recall and F1 of each label and over all; 0 where nothing was said, as in scikit-learn.

    truth, said: [rows, labels]. Macro-F1 is the mean over the labels that occur in the rows.
    """
    hits = weights @ (truth & said).astype(np.float64)
    claims, support = weights @ said.astype(np.float64), weights @ truth.astype(np.float64)
    f1 = _share(2 * hits, claims + support)
    each = {"precision": _share(hits, claims), "recall": _share(hits, support), "f1": f1, "support": support}
    macro = mean_of_known(np.where(support > 0, f1, np.nan))
    return {"macro_f1": macro, "micro_f1": _share(2 * hits.sum(1), (claims + support).sum(1))}, each


def mean_of_known(values: Floats) -> Floats:
    """[resamples, labels] → [resamples]: over labels whose value is not NaN; NaN where there are none."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def calibration_error(weights: Floats, probs: Floats, truth: Bools) -> Floats:
    """Expected calibration error: Σ over bins of |Σ (probability − truth)| / rows. probs, truth: [rows] → [resamples].

    Bins are (a, b], as Guo et al. have them.
    """
    gaps = np.zeros((len(probs), BINS))
    gaps[np.arange(len(probs)), bins_of(probs)] = probs - truth
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1))


def bins_of(probs: Floats) -> NDArray[np.int64]:
    """The bin of each probability, 0 to BINS − 1."""
    return np.clip(np.ceil(probs * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0)


def _log(probs: Floats) -> Floats:
    """A probability that was rounded to 0 costs 36, as in scikit-learn, not infinity."""
    tiny = np.finfo(np.float64).eps
    return np.log(np.clip(probs, tiny, 1 - tiny))


def _areas(weights: Floats, ranked: list[Ranked], truth: Bools) -> dict[str, Floats]:
    areas = [one.areas(weights, truth[:, place]) for place, one in enumerate(ranked)]
    auc, average_precision = (np.stack(column, axis=1) for column in zip(*areas, strict=True))
    return {"roc_auc": auc, "average_precision": average_precision}


@dataclass
class SingleLabel:
    """Labels that exclude each other. targets [rows]: the true label's index. probs [rows, labels], summing to 1."""

    targets: NDArray[np.int64]
    probs: Floats
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.targets)
        # float32 sums to 1 within 1e-7 only, which float64 formulas notice.
        self.probs = self.probs / self.probs.sum(axis=1, keepdims=True)

    @cached_property
    def truth(self) -> Bools:
        """[rows, labels]"""
        return np.asarray(self.targets[:, None] == np.arange(self.probs.shape[1]))

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """[rows]"""
        return np.asarray(self.probs.argmax(axis=1))

    @cached_property
    def decided(self) -> Bools:
        """[rows, labels]"""
        return np.asarray(self.predicted[:, None] == np.arange(self.probs.shape[1]))

    @cached_property
    def losses(self) -> Floats:
        """Log loss of each row."""
        return -_log(self.probs[np.arange(self.rows), self.targets])

    @cached_property
    def _brier(self) -> Floats:
        """Of two labels the usual score, 0 to 1; of more Brier's own, a sum over labels, 0 to 2; as scikit-learn."""
        squares = ((self.probs - self.truth) ** 2).sum(axis=1)
        return np.asarray(squares / 2 if self.probs.shape[1] == 2 else squares)

    @cached_property
    def _ranked(self) -> list[Ranked]:
        return [Ranked(column) for column in self.probs.T]

    def right(self) -> Bools:
        return np.asarray(self.predicted == self.targets)

    def measure(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        rates, each = label_rates(weights, self.truth, self.decided)
        areas = _areas(weights, self._ranked, self.truth)
        total = weights.sum(axis=1)
        right = self.right()
        values = {
            "accuracy": weights @ right / total,
            **rates,
            **{name: mean_of_known(area) for name, area in areas.items()},
            "log_loss": weights @ self.losses / total,
            "brier": weights @ self._brier / total,
            "ece": calibration_error(weights, self.probs.max(axis=1), right),
        }
        return values, each | areas


@dataclass
class MultiLabel:
    """Labels that do not exclude each other. targets [rows, judged], probs [rows, judged], thresholds [judged]."""

    targets: Bools
    probs: Floats
    thresholds: Floats
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.targets)

    @cached_property
    def decided(self) -> Bools:
        """Which labels a row is given: those at their threshold or above."""
        return np.asarray(self.probs >= self.thresholds)

    @cached_property
    def label_losses(self) -> Floats:
        """Log loss of each decision, [rows, judged]."""
        return -_log(np.where(self.targets, self.probs, 1 - self.probs))

    @cached_property
    def losses(self) -> Floats:
        """Log loss of each row, the mean over its labels."""
        return np.asarray(self.label_losses.mean(axis=1))

    @cached_property
    def _ranked(self) -> list[Ranked]:
        return [Ranked(column) for column in self.probs.T]

    def right(self) -> Bools:
        return np.asarray((self.decided == self.targets).all(axis=1))

    def measure(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        rates, each = label_rates(weights, self.targets, self.decided)
        areas = _areas(weights, self._ranked, self.targets)
        total = weights.sum(axis=1)
        squares = ((self.probs - self.targets) ** 2).mean(axis=1)
        columns = zip(self.probs.T, self.targets.T, strict=True)
        each["ece"] = np.stack([calibration_error(weights, *column) for column in columns], axis=1)
        values = {
            "exact_match": weights @ self.right() / total,
            **rates,
            **{name: mean_of_known(area) for name, area in areas.items()},
            "log_loss": weights @ self.losses / total,
            "brier": weights @ squares / total,
            "ece": each["ece"].mean(axis=1),
        }
        return values, each | areas

"""What is measured of scores that are numbers. Knows no model."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from assay.evaluation.metrics import Bools, mean_of_known
from assay.evaluation.ranking import Floats, Ranked


def correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Pearson's, of x and y ([rows], or [resamples, rows]) → [resamples]; NaN where one of them does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.full(len(weights), np.nan)
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
        return np.where(spread > 0, (weights * x * y).sum(axis=1) / spread, np.nan)


@dataclass
class Regression:
    """targets, scores: [rows, judged]."""

    targets: Floats
    scores: Floats
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.targets)

    @cached_property
    def losses(self) -> Floats:
        """The mean absolute error of each row."""
        return np.asarray(np.abs(self.scores - self.targets).mean(axis=1))

    def right(self) -> Bools:
        """Of numbers nothing is simply right."""
        return np.zeros(0, dtype=bool)

    def measure(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        total = weights.sum(axis=1, keepdims=True)
        errors = self.scores - self.targets
        columns = list(zip(self.targets.T, self.scores.T, strict=True))
        each = {
            "pearson": np.stack([correlation(weights, *column) for column in columns], axis=1),
            "spearman": np.stack([self._spearman(weights, *column) for column in columns], axis=1),
            "mae": weights @ np.abs(errors) / total,
            "rmse": np.sqrt(weights @ errors**2 / total),
        }
        return {name: mean_of_known(values) for name, values in each.items()}, each

    def _spearman(self, weights: Floats, truth: Floats, scores: Floats) -> Floats:
        return correlation(weights, Ranked(truth).ranks(weights), Ranked(scores).ranks(weights))

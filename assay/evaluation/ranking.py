"""Weighted ROC-AUC, average precision and ranks, for many weightings of the same rows at once. Knows no label.

A bootstrap resample is a weighting by how often each row was drawn, so one sort of the scores serves them all.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Ranked:
    """Scores [rows], sorted once; equal ones are one group. Weights are [resamples, rows]."""

    def __init__(self, scores: Floats) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._ends = np.r_[self._starts[1:], len(scores)]
        self._group = np.repeat(np.arange(len(self._starts)), self._ends - self._starts)  # of each sorted row

    def ranks(self, weights: Floats) -> Floats:
        """The mean rank of each row in each resample, where a row counts as often as it was drawn."""
        up_to = self._up_to(weights)
        below, up_to_group = up_to[:, self._starts], up_to[:, self._ends]
        ranks = np.empty_like(weights)
        ranks[:, self._order] = ((below + up_to_group + 1) / 2)[:, self._group]
        return ranks

    def areas(self, weights: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """(ROC-AUC, average precision), each [resamples]; NaN where a resample lacks positives (or negatives).

        Equal scores count half for the AUC (Mann-Whitney), and are one threshold for the average precision, which is
        the sum over thresholds of precision times the recall gained (no interpolation, as in scikit-learn).
        """
        if not positive.any():
            return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        up_to = self._up_to(weights)
        places = np.flatnonzero(positive[self._order])
        groups, first = np.unique(self._group[places], return_index=True)  # those with a positive: sums need no others
        hits = np.add.reduceat(weights[:, self._order[places]], first, axis=1)
        below, total = up_to[:, self._starts[groups]], up_to[:, -1:]
        all_hits = hits.sum(axis=1, keepdims=True)
        hits_below = np.cumsum(hits, axis=1) - hits
        misses = up_to[:, self._ends[groups]] - below - hits
        with np.errstate(divide="ignore", invalid="ignore"):
            auc = (hits * (below - hits_below + misses / 2)).sum(axis=1, keepdims=True) / (
                all_hits * (total - all_hits)
            )
            precision = np.where(total > below, (all_hits - hits_below) / (total - below), 0.0)
            average_precision = (hits * precision).sum(axis=1, keepdims=True) / all_hits
        return auc[:, 0], average_precision[:, 0]

    def _up_to(self, weights: Floats) -> Floats:
        """Weight of the rows before each place in sorted order: [resamples, 1 + rows]."""
        up_to = np.zeros((len(weights), weights.shape[1] + 1))
        np.cumsum(weights[:, self._order], axis=1, out=up_to[:, 1:])
        return up_to

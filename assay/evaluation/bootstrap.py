"""Intervals by resampling rows (Efron 1979), vectorised and seeded. Knows no formula.

Two models that are judged on the same rows see the same resamples, so that their difference has an interval too.
Intervals are the resamples' percentiles, but where resampling inflates the value itself, as of the calibration error:
noise adds to a sum of absolute gaps, and resampling adds it again. There the percentiles are reflected at the value
(the basic bootstrap; Davison and Hinkley 1997, 5.2). docs/evaluate.md has both ways' coverage.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from assay.evaluation.metrics import INFLATED, Judged
from assay.evaluation.ranking import Floats

LEVEL = 0.95
SEED = 0
RESAMPLES = 1000
_CELLS = 4_000_000  # rows × resamples of one piece: 32 MB of weights
_WORK = 2_000_000_000  # rows × labels × resamples beyond which fewer resamples are drawn: about a minute
_FEWEST = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """values, each: by metric, [1 + resamples] and [1 + resamples, labels]; the first row is the data itself."""

    values: dict[str, Floats]
    each: dict[str, Floats]

    def estimates(self) -> dict[str, Estimate]:
        return {name: estimate(name, values) for name, values in self.values.items()}

    def estimates_of_labels(self) -> dict[str, list[Estimate]]:
        return {name: [estimate(name, column) for column in values.T] for name, values in self.each.items()}


def resamples_for(rows: int, labels: int, asked: int | None) -> int:
    """As many as asked for; else 1000, or fewer where that would take minutes."""
    if asked is not None:
        return asked
    return max(_FEWEST, min(RESAMPLES, _WORK // max(1, rows * labels)))


def bootstrap(judged: Judged, resamples: int) -> Measured:
    """Measure the rows as they are, then `resamples` resamples of them."""
    pieces = [judged.measure(np.ones((1, judged.rows)))]
    pieces += [judged.measure(weights) for weights in weights_of(judged.rows, resamples)]
    values, each = ({name: [piece[i][name] for piece in pieces] for name in pieces[0][i]} for i in (0, 1))
    return Measured(
        {name: np.concatenate(parts) for name, parts in values.items()},
        {name: np.concatenate(parts) for name, parts in each.items()},
    )


def estimate(name: str, values: Floats, difference: bool = False) -> Estimate:
    """values [1 + resamples] of a metric, or of its difference between two models. Without resamples no interval."""
    value = float(values[0])
    known = values[1:][~np.isnan(values[1:])]
    if not len(known) or np.isnan(value):
        return Estimate(value, np.nan, np.nan)
    low, high = map(float, np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if name in INFLATED:
        low, high = 2 * value - high, 2 * value - low
        if not difference:
            low, high = max(0.0, low), max(value, high)
    return Estimate(value, low, high)


def weights_of(rows: int, resamples: int) -> Iterator[Floats]:
    """How often each row is drawn, [some resamples, rows]; the same for the same rows and resamples."""
    generator = np.random.default_rng(SEED)
    size = max(1, _CELLS // rows)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = generator.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)

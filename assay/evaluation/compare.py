"""Two models on the same rows: which decisions flip, how far scores move, and whether one is better. Knows no model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from assay.errors import ConfigError
from assay.evaluation.bootstrap import Estimate, Measured, estimate
from assay.evaluation.metrics import MultiLabel, SingleLabel
from assay.evaluation.mistakes import AnyJudged
from assay.evaluation.pairs import Preference
from assay.evaluation.ranking import Floats
from assay.evaluation.regression import Regression

_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class McNemar:
    """Of rows that only one of two models has right. p: exact, two-sided, that a fair coin is as uneven."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True, slots=True)
class Flips:
    """Rows whose decision differs. of these: right before and wrong after, the reverse, wrong both times.

    decisions: of labels that do not exclude each other, single decisions that differ, of rows × labels.
    pairs: the commonest, as (first said, second said, how often).
    """

    rows: int
    worse: int
    better: int
    decisions: int
    pairs: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """differences: second minus first, with paired intervals. drift: quantiles of each row's largest |Δ|.

    score_drift, logit_drift: [rows]. flips, mcnemar: None of numbers, which nothing decides.
    """

    differences: dict[str, Estimate]
    score_drift: Floats
    logit_drift: Floats
    flips: Flips | None
    mcnemar: McNemar | None
    rows: int

    def quantiles(self, drift: Floats) -> dict[str, float]:
        return {name: float(np.quantile(drift, share)) for name, share in _QUANTILES.items()}


def check_same_labels(first: Sequence[str], second: Sequence[str]) -> None:
    """In whatever order. Raises ConfigError."""
    only = [sorted(set(one) - set(other)) for one, other in ((first, second), (second, first))]
    if only != [[], []]:
        raise ConfigError(
            f"The models have different labels: only the first has {_listed(only[0])}, only the second "
            f"{_listed(only[1])}. Only models with the same labels can be compared."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (" …" if len(names) > 12 else "") if names else "none"


Side = tuple[AnyJudged, Floats, Measured]
"""What a model made of the rows: judged, logits [rows, labels], measured."""


def compare(first: Side, second: Side, labels: Sequence[str]) -> Comparison:
    """Both of the same rows, labels and resamples."""
    right = [side[0].right() for side in (first, second)]
    decides = not isinstance(first[0], Regression)
    return Comparison(
        differences=differences(first[2], second[2]),
        score_drift=drift(_scores(first[0]), _scores(second[0])),
        logit_drift=drift(first[1], second[1]),
        flips=flips(first[0], second[0], labels),
        mcnemar=mcnemar(*right) if decides else None,
        rows=first[0].rows,
    )


def _scores(judged: AnyJudged) -> Floats:
    """[rows, labels]: what is shown of a model to its users."""
    match judged:
        case SingleLabel() | MultiLabel():
            return judged.probs
        case Regression():
            return judged.scores
        case Preference():
            return np.stack([judged.chosen, judged.rejected], axis=1)


def differences(first: Measured, second: Measured) -> dict[str, Estimate]:
    """Second minus first: both saw the same resamples, so what is hard for both cancels."""
    return {
        name: estimate(name, second.values[name] - values, difference=True) for name, values in first.values.items()
    }


def drift(first: Floats, second: Floats) -> Floats:
    """The largest |Δ| of each row; [rows, labels] → [rows]."""
    return np.asarray(np.abs(second - first).max(axis=1))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Exact (McNemar 1947, as a sign test). first, second: whether each model has a row right."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    both = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, both).pvalue) if both else 1.0)


def flips(first: AnyJudged, second: AnyJudged, labels: Sequence[str]) -> Flips | None:
    """What differs between two models' decisions; None where there are none."""
    match first, second:
        case SingleLabel(), SingleLabel():
            differs = first.predicted != second.predicted
            said = [[labels[i] for i in one.predicted[differs].tolist()] for one in (first, second)]
            decisions = int(differs.sum())
        case MultiLabel(), MultiLabel():
            each = first.decided != second.decided
            differs, decisions = each.any(axis=1), int(each.sum())
            names = [labels[column] for column in np.nonzero(each)[1].tolist()]
            said = [
                [name if given else f"not {name}" for name, given in zip(names, one.decided[each], strict=True)]
                for one in (first, second)
            ]
        case Preference(), Preference():
            differs = first.right() != second.right()
            words = {True: "chosen", False: "rejected, or a tie"}
            said = [[words[bool(right)] for right in one.right()[differs]] for one in (first, second)]
            decisions = int(differs.sum())
        case _:
            return None
    before, after = first.right()[differs], second.right()[differs]
    return Flips(
        rows=int(differs.sum()),
        worse=int((before & ~after).sum()),
        better=int((~before & after).sum()),
        decisions=decisions,
        pairs=_commonest(*said),
    )


def _commonest(first: list[str], second: list[str]) -> tuple[tuple[str, str, int], ...]:
    counts = Counter(zip(first, second, strict=True))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple((*pair, count) for pair, count in ordered[:20])


def verdict(comparison: Comparison, better: str) -> str:
    """In plain words, for whoever decides. better: the name of the metric that right and wrong are counted by."""
    if comparison.mcnemar is None or comparison.flips is None:
        return ""
    test, flipped = comparison.mcnemar, comparison.flips
    gap = comparison.differences[better]
    counted = (
        f"{flipped.rows:,} of {comparison.rows:,} rows are decided differently ({flipped.rows / comparison.rows:.2%})"
    )
    if test.only_first + test.only_second == 0:
        return f"{counted}; neither model is right where the other is wrong."
    gained = f"{test.only_second:,} became right and {test.only_first:,} wrong (McNemar p = {test.p:.3g})"
    interval = "" if np.isnan(gap.low) else f", 95 % interval {100 * gap.low:+.2f} to {100 * gap.high:+.2f}"
    change = f"a change of {100 * gap.value:+.2f} points{interval}"
    if test.p < 0.05:
        winner = "second" if test.only_second > test.only_first else "first"
        return f"{counted}; {gained}: {change}. The {winner} model is better, beyond chance at the 5 % level."
    return f"{counted}; {gained}: {change}. No difference beyond chance, which is not proof that there is none."

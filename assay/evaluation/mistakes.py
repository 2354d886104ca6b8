"""The rows that were judged wrong, worst first, with their texts. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.evaluation.metrics import MultiLabel, SingleLabel
from assay.evaluation.pairs import Preference
from assay.evaluation.regression import Regression

AnyJudged = SingleLabel | MultiLabel | Regression | Preference
_MAX_TEXT = 2000  # characters of a text that a report holds


@dataclass(frozen=True, slots=True)
class Mistake:
    """place: the row's. texts: what the model read. truth, said: in words, with scores.

    cost: what rows are ordered by: the log loss, or the absolute error.
    """

    place: str
    texts: tuple[str, ...]
    truth: str
    said: str
    cost: float


def worst(
    judged: AnyJudged, labels: Sequence[str], inputs: Sequence[tuple[Any, ...]], places: Sequence[str], count: int
) -> list[Mistake]:
    """labels: those that are judged. Of regression, the largest errors; of pairs, the most preferred rejected ones."""
    wrong = np.arange(judged.rows) if isinstance(judged, Regression) else np.flatnonzero(~judged.right())
    order = wrong[np.argsort(-judged.losses[wrong], kind="stable")][:count]
    return [
        Mistake(
            places[row], tuple(map(shown, inputs[row])), *_words(judged, labels, int(row)), float(judged.losses[row])
        )
        for row in order
    ]


def _words(judged: AnyJudged, labels: Sequence[str], row: int) -> tuple[str, str]:
    match judged:
        case SingleLabel():
            true, said = int(judged.targets[row]), int(judged.predicted[row])
            probs = judged.probs[row]
            return f"{labels[true]} ({probs[true]:.3f})", f"{labels[said]} ({probs[said]:.3f})"
        case MultiLabel():
            return _given(judged, labels, row, judged.targets[row]), _given(judged, labels, row, judged.decided[row])
        case Regression():
            return _numbers(labels, judged.targets[row]), _numbers(labels, judged.scores[row])
        case Preference():
            return f"chosen {judged.chosen[row]:.4g}", f"rejected {judged.rejected[row]:.4g}"


def _given(judged: MultiLabel, labels: Sequence[str], row: int, which: Any) -> str:
    return ", ".join(f"{labels[i]} ({judged.probs[row, i]:.3f})" for i in map(int, np.flatnonzero(which))) or "none"


def _numbers(labels: Sequence[str], values: Any) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return ", ".join(f"{label} {value:.4g}" for label, value in zip(labels, values, strict=True))


def shown(given: Any) -> str:
    """A text or a conversation, as a reader sees it."""
    if isinstance(given, list):
        given = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in given)
    text = str(given)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} …"

"""Logits whose truth is known → the correction that makes honest probabilities of them. Knows no model and no file.

Targets are smoothed as Platt has it (1999): as if one more row of each kind had gone wrong. So data on which the model
is never wrong does not make it infinitely sure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, softmax

from assay.calibration import DEFAULT_THRESHOLD, LabelCalibration, Quality
from assay.errors import RequestError
from assay.evaluation.metrics import Bools, MultiLabel, SingleLabel
from assay.evaluation.ranking import Floats
from assay.evaluation.truth import Truth

FEWEST = 10
"""Rows that have a label, and rows that lack it, without which the label is left as it is; and rows in all."""

_LIMITS = 1e-6, 1e6  # of a slope, as a calibration file has them


@dataclass(frozen=True, slots=True)
class Fit:
    """labels: all of the model's. before, after: measured on the rows of the fit themselves."""

    temperature: float
    labels: tuple[LabelCalibration, ...]
    before: Quality
    after: Quality


def fit(logits: Floats, truth: Truth, labels: tuple[str, ...]) -> Fit:
    """logits [rows, judged]. labels: all of the model's. Raises RequestError where there is nothing to fit."""
    if len(logits) < FEWEST:
        raise RequestError(
            f"{len(logits)} rows are too few to fit anything; {FEWEST} is the least, and 1000 are better."
        )
    if truth.task == "single":
        return _of_exclusive(logits, truth.targets, labels)
    return _of_independent(logits, truth, labels)


def _of_exclusive(logits: Floats, targets: NDArray[np.int64], labels: tuple[str, ...]) -> Fit:
    temperature = fit_temperature(logits, targets)
    before, after = (SingleLabel(targets, softmax(values, axis=1)) for values in (logits, logits / temperature))
    return Fit(temperature, tuple(map(LabelCalibration, labels)), _quality(before), _quality(after))


def _of_independent(logits: Floats, truth: Truth, labels: tuple[str, ...]) -> Fit:
    fitted = [LabelCalibration(label, note="the data does not speak of it") for label in labels]
    for column, place in enumerate(truth.judged):
        fitted[place] = _of_label(labels[place], logits[:, column], truth.targets[:, column])
    judged = [fitted[place] for place in truth.judged]
    if all(one.threshold is None for one in judged):
        raise RequestError(f"No label can be calibrated. {judged[0].label}: {judged[0].note}.")
    corrected = logits * [one.slope for one in judged] + [one.intercept for one in judged]
    defaults = np.full(len(judged), DEFAULT_THRESHOLD)
    own = np.array([DEFAULT_THRESHOLD if one.threshold is None else one.threshold for one in judged])
    before, after = MultiLabel(truth.targets, expit(logits), defaults), MultiLabel(truth.targets, expit(corrected), own)
    return Fit(1.0, tuple(fitted), _quality(before), _quality(after))


def _of_label(label: str, logits: Floats, truth: Bools) -> LabelCalibration:
    """logits, truth: [rows]. A label that cannot be fitted stays as it is, and its note says why."""
    having, lacking = int(truth.sum()), int((~truth).sum())
    for count, what in ((having, "have"), (lacking, "lack")):
        if count < FEWEST:
            return LabelCalibration(label, note=f"{count} rows {what} it, and {FEWEST} are the least")
    if np.ptp(logits) == 0:
        return LabelCalibration(label, note="its score is the same in all rows")
    slope, intercept = fit_platt(logits, truth)
    if not _LIMITS[0] <= slope <= _LIMITS[1]:
        return LabelCalibration(label, note="its scores do not rise with it")
    threshold = best_threshold(expit(slope * logits + intercept), truth)
    return LabelCalibration(label, slope, intercept, threshold)


def fit_temperature(logits: Floats, targets: NDArray[np.int64]) -> float:
    """The one with the least log loss (Guo et al. 2017). logits [rows, labels], targets [rows].

    As if one row of all rows + 2 had another label than its own, whichever. Raises RequestError where logits say
    nothing of the labels.
    """
    rows, labels = logits.shape
    wanted = np.full(logits.shape, 1 / (rows + 2) / (labels - 1))
    wanted[np.arange(rows), targets] = 1 - 1 / (rows + 2)
    total = (wanted * logits).sum()

    def steepness(slope: float) -> float:
        """Of the log loss, which is convex, at a slope of 1 / temperature."""
        return float((softmax(slope * logits, axis=1) * logits).sum() - total)

    low, high = _LIMITS
    if not steepness(low) < 0 < steepness(high):
        raise RequestError(
            "The model's scores do not rise with the labels of this data, so no temperature corrects them. Is it the "
            "right column?"
        )
    slope: float = brentq(steepness, low, high, xtol=1e-12)
    return 1 / slope


def fit_platt(logits: Floats, truth: Bools) -> tuple[float, float]:
    """(slope, intercept) of the least log loss against smoothed targets. logits, truth: [rows]."""
    having, lacking = truth.sum(), (~truth).sum()
    wanted = np.where(truth, (having + 1) / (having + 2), 1 / (lacking + 2))
    center, scale = logits.mean(), logits.std()
    inputs = np.stack([(logits - center) / scale, np.ones(len(logits))])  # [2, rows]

    def loss(weights: Floats) -> float:
        raw = weights @ inputs
        return float((np.logaddexp(0, raw) - wanted * raw).mean())

    def gradient(weights: Floats) -> Floats:
        return np.asarray(inputs @ (expit(weights @ inputs) - wanted) / len(logits))

    def hessian(weights: Floats) -> Floats:
        probs = expit(weights @ inputs)
        return np.asarray((inputs * probs * (1 - probs)) @ inputs.T / len(logits))

    start = np.array([0.0, np.log((having + 1) / (lacking + 1))])
    found = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-10}).x
    slope = found[0] / scale
    return float(slope), float(found[1] - slope * center)


def best_threshold(probs: Floats, truth: Bools) -> float:
    """The one with the largest F1, half-way between two probabilities that occur; of several, the nearest to one half.

    probs, truth: [rows].
    """
    order = np.argsort(-probs, kind="stable")
    ordered = probs[order]
    below = np.append(ordered[1:], 0.0)  # a threshold between these two gives the label to all rows so far
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(probs) + 1) + truth.sum())
    possible = ordered > below
    best = possible & np.isclose(f1, f1[possible].max(), rtol=1e-12)
    middles = (ordered + below)[best] / 2
    return float(middles[np.argmin(np.abs(middles - DEFAULT_THRESHOLD))])


def _quality(judged: SingleLabel | MultiLabel) -> Quality:
    values, _ = judged.measure(np.ones((1, judged.rows)))
    return Quality(*(float(values[name][0]) for name in ("log_loss", "ece", "macro_f1")))

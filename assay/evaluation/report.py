"""An evaluation → `report.json`, whose numbers the terminal and the page show too. Knows neither."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from assay import __version__
from assay.evaluation.bootstrap import LEVEL, Measured
from assay.evaluation.compare import verdict
from assay.evaluation.curves import confusion, coverage, reliability, threshold_curves
from assay.evaluation.evaluate import Assessed, Evaluation
from assay.evaluation.metrics import MultiLabel, SingleLabel
from assay.evaluation.mistakes import worst
from assay.files.sources import name_of

_DECISIVE = {"single": "accuracy", "multi": "exact_match", "pairs": "accuracy"}
"""The metric that counts rows as right or wrong, as McNemar's test does."""


def report_of(evaluation: Evaluation, mistakes: int) -> dict[str, Any]:
    """Plain data; NaN stands for what is not defined, and becomes null in JSON.

    mistakes: how many of the first model's worst are told.
    """
    report: dict[str, Any] = {
        "assay": __version__,
        "task": evaluation.truth.task,
        "data": _data(evaluation),
        "confidence": LEVEL,
        "resamples": evaluation.resamples,
        "model": _model(evaluation, evaluation.first),
    }
    if evaluation.second is not None:
        report["compared"] = _model(evaluation, evaluation.second)
        report["comparison"] = _comparison(evaluation)
    found = worst(evaluation.first.judged, evaluation.labels, evaluation.inputs, evaluation.places, mistakes)
    report["mistakes"] = [asdict(one) for one in found]
    return report


def _data(evaluation: Evaluation) -> dict[str, Any]:
    data, truth = evaluation.data, evaluation.truth
    return {
        "files": [name_of(source) for source in data.sources],
        "rows": evaluation.rows,
        "inputs": list(data.columns.inputs),
        "label_columns": list(data.columns.labels),
        "labels_read": truth.recognised,
        "labels": list(evaluation.labels),
        "unknown_labels": dict(truth.unknown),
        "left_out": len(data.inputs) - evaluation.rows,
        "skipped": list(data.skipped),
    }


def _model(evaluation: Evaluation, one: Assessed) -> dict[str, Any]:
    described = asdict(one.subject) | {"title": one.subject.title, "read_as": one.read_as}
    del described["thresholds"]  # those that were used follow
    described |= {"num_tokens": one.num_tokens, "seconds": round(one.seconds, 3)}
    described["metrics"] = {name: asdict(value) for name, value in one.measured.estimates().items()}
    described["labels"] = _labels(evaluation, one.measured)
    judged = one.judged
    if isinstance(judged, SingleLabel | MultiLabel):
        described["reliability"] = reliability(judged).as_json()
        table = confusion(judged, evaluation.labels)
        described["confusion"] = {"labels": list(table.labels), "counts": table.counts.tolist()}
    if isinstance(judged, MultiLabel):
        described["thresholds"] = dict(zip(evaluation.labels, judged.thresholds.tolist(), strict=True))
        curves = threshold_curves(judged.probs, judged.targets)
        described["best_threshold"] = curves.best()
        described["curve"] = curves.as_json()
    if isinstance(judged, SingleLabel):
        described["coverage"] = coverage(judged).as_json()
    return described


def _labels(evaluation: Evaluation, measured: Measured) -> dict[str, dict[str, Any]]:
    """By label and metric; `support` is a count, without an interval."""
    by_metric = measured.estimates_of_labels()
    found: dict[str, dict[str, Any]] = {}
    for place, label in enumerate(evaluation.labels):
        found[label] = {name: asdict(values[place]) for name, values in by_metric.items() if name != "support"}
        if "support" in by_metric:
            found[label]["support"] = int(by_metric["support"][place].value)
    return found


def _comparison(evaluation: Evaluation) -> dict[str, Any]:
    comparison = evaluation.comparison
    assert comparison is not None
    better = _DECISIVE.get(evaluation.truth.task)
    return {
        "differences": {name: asdict(value) for name, value in comparison.differences.items()},
        "flips": None if comparison.flips is None else asdict(comparison.flips),
        "mcnemar": None if comparison.mcnemar is None else asdict(comparison.mcnemar),
        "score_drift": comparison.quantiles(comparison.score_drift),
        "logit_drift": comparison.quantiles(comparison.logit_drift),
        "verdict": "" if better is None else verdict(comparison, better),
    }


def write_report(report: Mapping[str, Any], page: str, folder: Path) -> None:
    """report.json and report.html, each whole or not at all. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"report.json": msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"}
    content["report.html"] = page.encode("utf-8", "replace")
    for name, data in content.items():
        unfinished = folder / f".{name}.{os.getpid()}.tmp"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)


def in_words(estimate: Mapping[str, float], signed: bool = False, interval: bool = True) -> str:
    """0.5041 [0.4812, 0.5260]; – for what is not defined. signed: with a plus too, as differences have.

    interval: whether it is told, where there is one.
    """

    def number(value: float) -> str:
        value = round(value, 4) + 0.0  # no -0
        return f"{value:+.4f}" if signed and value else f"{value:.4f}"

    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if math.isnan(value):
        return "–"
    return number(value) if math.isnan(low) or not interval else f"{number(value)} [{number(low)}, {number(high)}]"

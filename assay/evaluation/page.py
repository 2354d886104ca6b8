"""A report and its pictures → `report.html`: one file that asks nobody for anything. Knows no model and no array.

What came from the data or the model is escaped; scripts are neither used nor allowed by the page's own policy.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from assay.evaluation.canvas import Picture
from assay.evaluation.metrics import METRICS
from assay.evaluation.report import in_words

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_COLUMNS = ("support", "precision", "recall", "f1", "roc_auc", "average_precision", "ece")
_OF_NUMBERS = ("pearson", "spearman", "mae", "rmse")
NAMES = {
    "support": "rows",
    "f1": "F1 [95 %]",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "ece": "ECE",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mae": "mean abs. error",
    "rmse": "RMSE",
}


def columns_of(model: Mapping[str, Any]) -> list[str]:
    """Which columns a table by label has; none where there is one label, or none."""
    labels = list(model["labels"].values())
    if len(labels) < 2:
        return []
    names = [name for name in (*_COLUMNS, *_OF_NUMBERS) if name in labels[0]]
    return [*names[:1], "threshold", *names[1:]] if "thresholds" in model else names


def page_of(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "base64": _base64,
        "number": _number,
        "interval": _interval,
        "which": _which,
        "signed": _signed,
    }
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    known = {"comparison": None, "compared": None} | dict(report)
    return template.render(
        **known, metrics=METRICS, names=NAMES, columns=columns_of(report["model"]), pictures=pictures
    )


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode()


def _number(estimate: Mapping[str, float]) -> str:
    return "–" if estimate["value"] != estimate["value"] else f"{estimate['value']:.3f}"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _signed(difference: Mapping[str, float]) -> str:
    return in_words(difference, signed=True)


def _which(difference: Mapping[str, float], better: str) -> str:
    """The class of a difference whose interval leaves out zero."""
    low, high = difference["low"], difference["high"]
    if better == "neither" or not (low > 0 or high < 0):
        return ""
    return "better" if (low > 0) == (better == "higher") else "worse"

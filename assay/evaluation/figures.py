"""The pictures of a report, each an SVG that any browser shows. Knows scores and truth; no model, no page.

Drawn without pyplot, so without a display and without state. Labels are never read as formulas.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from assay.evaluation.curves import THRESHOLDS, confusion, coverage, reliability, threshold_curves
from assay.evaluation.evaluate import Evaluation
from assay.evaluation.metrics import BINS, MultiLabel, SingleLabel
from assay.evaluation.pairs import Preference
from assay.evaluation.ranking import Floats
from assay.evaluation.regression import Regression

BLUE, ORANGE, GREEN, GREY, INK = "#0b5fa5", "#c8500a", "#2e7d32", "#8a8f98", "#1d2329"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # texts stay texts: the browser has the glyphs that matplotlib's font lacks
    "svg.hashsalt": "assay",  # the same data, the same file
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
_COLUMNS = 4  # of small pictures, one a label
_LONGEST = 28  # characters of a label beside a picture
_WRITTEN = 12  # labels up to which a confusion matrix shows its numbers


@dataclass(frozen=True, slots=True)
class Picture:
    """caption: how it is read. svg: a document of its own."""

    title: str
    caption: str
    svg: str


def pictures_of(evaluation: Evaluation) -> list[Picture]:
    """Of the first model; and of both, how far their scores are apart."""
    labels = evaluation.labels
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        match evaluation.first.judged:
            case SingleLabel() as judged:
                pictures = _of_single(judged, labels)
            case MultiLabel() as judged:
                pictures = _of_multi(judged, labels)
            case Regression() as judged:
                pictures = [_scatter(judged, labels)]
            case Preference() as judged:
                pictures = [_margins(judged)]
        if evaluation.comparison is not None:
            pictures.append(_drift(evaluation.comparison.score_drift))
    return pictures


def _of_single(judged: SingleLabel, labels: Sequence[str]) -> list[Picture]:
    return [
        _confusion(judged, labels, "Of the rows of each true label (down), the share that was given each label."),
        _reliability(judged, "the winning label's probability", "rows that are right"),
        _coverage(judged),
        _histograms(judged.probs, judged.truth, labels, None),
    ]


def _of_multi(judged: MultiLabel, labels: Sequence[str]) -> list[Picture]:
    told = (
        "Of the rows that have a label (down), the share that was given each label (across). A row may have and be "
        "given several, so lines need not add up to 100 %."
    )
    return [
        _confusion(judged, labels, told),
        _reliability(judged, "probability of a label", "rows that have it"),
        _curves(judged),
        _curves_of_labels(judged, labels),
        _histograms(judged.probs, judged.targets, labels, judged.thresholds),
    ]


def _picture(title: str, caption: str, figure: Figure) -> Picture:
    target = io.StringIO()
    figure.savefig(target, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    return Picture(title, caption, svg[svg.index("<svg") :])


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def _confusion(judged: SingleLabel | MultiLabel, labels: Sequence[str], caption: str) -> Picture:
    counts = confusion(judged)
    support = (judged.truth if isinstance(judged, SingleLabel) else judged.targets).sum(axis=0)
    shares = counts / np.maximum(support, 1)[:, None]
    count = len(labels)
    side = min(max(0.5 * count, 3.2), 5 + 0.1 * count)  # inches: 0.5 a label where few, then ever less
    small = max(5.5, min(9.0, 0.8 * 72 * side / count))
    figure = Figure(figsize=(side * 1.06, side))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    names = [_short(label) for label in labels]
    axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=small)
    axes.set_yticks(range(count), names, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xlabel("given")
    axes.set_ylabel("true")
    if count <= _WRITTEN:
        for row, column in np.ndindex(*counts.shape):
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / side), aspect=18, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    bar.outline.set_visible(False)
    return _picture("Confusion matrix", caption, figure)


def _reliability(judged: SingleLabel | MultiLabel, what: str, which: str) -> Picture:
    bins = reliability(judged)
    figure = Figure(figsize=(4.6, 5.0))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1), gridspec_kw={"hspace": 0.12})
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as promised")
    known = bins.count > 0
    axes.plot(bins.confidence[known], bins.true_share[known], "o-", color=BLUE, markersize=4, label="as it came")
    axes.set_ylabel(f"share of {which}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper left")
    below.bar((np.arange(BINS) + 0.5) / BINS, bins.count, width=0.9 / BINS, color=BLUE)
    below.set_yscale("log")
    below.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))  # its own writes formulas
    below.set_ylabel("how many")
    below.set_xlabel(what)
    caption = (
        "Below the dashed line the model is too sure of itself, above it too modest. Underneath: how many there are."
    )
    return _picture("Reliability", caption, figure)


def _coverage(judged: SingleLabel) -> Picture:
    curve = coverage(judged)
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.add_subplot()
    axes.plot(THRESHOLDS, curve.answered, color=ORANGE, label="answered")
    axes.plot(THRESHOLDS, curve.right, color=BLUE, label="right, of those answered")
    _unit_axes(axes, "least probability of an answer")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower left")
    caption = (
        "If only answers of at least some probability are taken: the share of rows that get one, and the share of "
        "these that is right."
    )
    return _picture("Threshold", caption, figure)


def _curves(judged: MultiLabel) -> Picture:
    curves = threshold_curves(judged.probs, judged.targets)
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.add_subplot()
    axes.plot(THRESHOLDS, curves.macro_f1, color=BLUE, label="macro F1")
    axes.plot(THRESHOLDS, curves.micro_f1, color=ORANGE, label="micro F1")
    caption = "One threshold for all labels."
    best = curves.best()
    if best is not None:
        axes.axvline(best["threshold"], color=GREY, linestyle=":", linewidth=1)
        caption += (
            f" Macro F1 is highest at {best['threshold']:.2f}: {best['macro_f1']:.3f}. That threshold was found on "
            "these very rows, so on others it does a little worse: choose one on data of its own."
        )
    _unit_axes(axes, "threshold")
    axes.legend(loc="lower left")
    return _picture("Thresholds", caption, figure)


def _curves_of_labels(judged: MultiLabel, labels: Sequence[str]) -> Picture:
    curves = threshold_curves(judged.probs, judged.targets)

    def draw(axes: Axes, place: int) -> None:
        for values, color in ((curves.precision, ORANGE), (curves.recall, GREEN), (curves.f1, BLUE)):
            axes.plot(THRESHOLDS, values[:, place], color=color, linewidth=1.2)
        axes.axvline(judged.thresholds[place], color=GREY, linestyle=":", linewidth=1)
        axes.set_ylim(0, 1.03)

    keys = {"precision": ORANGE, "recall": GREEN, "F1": BLUE}
    caption = "By label, as the threshold moves (across). Dotted: the threshold that is used."
    return _picture("Thresholds by label", caption, _small(labels, draw, keys))


def _histograms(probs: Floats, truth: Any, labels: Sequence[str], thresholds: Floats | None) -> Picture:
    edges = np.linspace(0, 1, 21)

    def draw(axes: Axes, place: int) -> None:
        for chosen, color in ((~truth[:, place], GREY), (truth[:, place], BLUE)):
            if chosen.any():
                counts = np.histogram(probs[chosen, place], edges)[0] / chosen.sum()
                axes.stairs(counts, edges, fill=True, color=color, alpha=0.55)
        if thresholds is not None:
            axes.axvline(thresholds[place], color=INK, linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)

    keys = {"rows that have the label": BLUE, "rows that do not": GREY}
    caption = (
        "Where each label's probabilities lie (across): the share of the rows that have it, and of those that do not."
    )
    return _picture("Scores by label", caption, _small(labels, draw, keys))


def _small(labels: Sequence[str], draw: Callable[[Axes, int], None], keys: dict[str, str]) -> Figure:
    """A small picture for each label, and one legend above them all."""
    columns = min(_COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(2.45 * columns, 1.5 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(labels):
            axes.set_axis_off()
            continue
        draw(axes, place)
        axes.set_title(_short(labels[place]), fontsize=8.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(labelsize=7, labelbottom=place + columns >= len(labels))
    handles = [mpl.patches.Patch(color=color, label=name) for name, color in keys.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(keys), fontsize=8.5)
    return figure


def _unit_axes(axes: Axes, xlabel: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(xlabel)
    axes.grid(color="#e4e7eb", linewidth=0.6)


def _scatter(judged: Regression, labels: Sequence[str]) -> Picture:
    columns = min(3, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(labels):
            axes.set_axis_off()
            continue
        truth, scores = judged.targets[:, place], judged.scores[:, place]
        span = [min(truth.min(), scores.min()), max(truth.max(), scores.max())]
        axes.plot(span, span, color=GREY, linestyle="--", linewidth=1)
        # Thousands of points as one picture inside the SVG, not as so many paths.
        axes.scatter(truth, scores, s=9, alpha=0.5, color=BLUE, linewidths=0, rasterized=len(truth) > 1000)
        axes.set_xlabel("true")
        axes.set_ylabel("score")
        axes.set_title(_short(labels[place]))
    return _picture("Scores and truth", "A point a row; on the dashed line the score is the truth.", figure)


def _margins(judged: Preference) -> Picture:
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.add_subplot()
    _, edges = np.histogram(judged.margins, 40)
    step = edges[1] - edges[0]
    edges = np.arange(math.floor(edges[0] / step), math.ceil(edges[-1] / step) + 1) * step  # a bin ends at 0
    counts = np.histogram(judged.margins, edges)[0]
    colors = [BLUE if left >= -step / 2 else ORANGE for left in edges[:-1]]
    axes.bar(edges[:-1], counts, width=step, align="edge", color=colors)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("score of the chosen answer less that of the rejected")
    axes.set_ylabel("pairs")
    caption = "Right of 0 the model prefers what people chose, left of it what they rejected."
    return _picture("Margins", caption, figure)


def _drift(drift: Floats) -> Picture:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot()
    axes.plot(np.sort(drift), np.arange(1, len(drift) + 1) / len(drift), color=BLUE)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("largest change of a score in a row")
    axes.set_ylabel("share of rows up to here")
    axes.grid(color="#e4e7eb", linewidth=0.6)
    return _picture(
        "Drift between the two models", "How far a row's scores move from the first model to the second.", figure
    )

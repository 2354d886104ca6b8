"""The pictures of a report, each an SVG that any browser shows. Knows scores and truth; no model, no page."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from assay.evaluation.by_label import curves_by_label, scores_by_label
from assay.evaluation.canvas import BLUE, GREY, INK, ORANGE, Picture, drawing, picture, short
from assay.evaluation.curves import THRESHOLDS, confusion, coverage, reliability, threshold_curves
from assay.evaluation.evaluate import Evaluation
from assay.evaluation.metrics import BINS, MultiLabel, SingleLabel
from assay.evaluation.pairs import Preference
from assay.evaluation.ranking import Floats
from assay.evaluation.regression import Regression

_WRITTEN = 12  # labels up to which a confusion matrix shows its numbers


def pictures_of(evaluation: Evaluation) -> list[Picture]:
    """Of the first model; and of both, how far their scores are apart."""
    labels = evaluation.labels
    with drawing():
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
        scores_by_label(judged.probs, judged.truth, labels, None),
    ]


def _of_multi(judged: MultiLabel, labels: Sequence[str]) -> list[Picture]:
    told = (
        "Of the rows that have a label (down), the share that was given each label (across). A row may have and be "
        "given several, so lines need not add up to 100 %."
    )
    if len(labels) == 1:
        told = f"Rows with and without {labels[0]} (down), and what they were given (across)."
    return [
        _confusion(judged, labels, told),
        _reliability(judged, "probability of a label", "rows that have it"),
        *([_curves(judged)] if len(labels) > 1 else []),
        curves_by_label(judged, labels),
        scores_by_label(judged.probs, judged.targets, labels, judged.thresholds),
    ]


def _confusion(judged: SingleLabel | MultiLabel, labels: Sequence[str], caption: str) -> Picture:
    table = confusion(judged, labels)
    counts, count = table.counts, len(table.labels)
    shares = counts / np.maximum(table.support, 1)[:, None]
    side = min(0.5 * max(count, 5), max(6.0, 0.135 * count), 27.0)  # inches
    pitch = 72 * side / count  # points
    size = min(9.0, 0.78 * pitch)
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))  # labels and bar stand around it: the picture is cut to what is drawn
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    names = [short(label) for label in table.labels]
    axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("given")
    axes.set_ylabel("true")
    if count <= _WRITTEN:
        for row, column in np.ndindex(*counts.shape):
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
    high = 2.5 / side if side > 2.5 else 1.0
    bar = figure.colorbar(image, cax=figure.add_axes((1 + 0.25 / side, 1 - high, 0.14 / side, high)))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    bar.outline.set_visible(False)
    return picture("Confusion matrix", caption, figure)


def _reliability(judged: SingleLabel | MultiLabel, what: str, which: str) -> Picture:
    bins = reliability(judged)
    figure = Figure(figsize=(4.6, 5.0))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1), gridspec_kw={"hspace": 0.12})
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as promised")
    known = bins.count > 0
    axes.plot(
        bins.confidence[known],
        bins.true_share[known],
        "o-",
        color=BLUE,
        markersize=4,
        label="as it came",
        clip_on=False,
    )
    axes.set_ylabel(f"share of {which}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper left")
    below.bar((np.arange(BINS) + 0.5) / BINS, bins.count, width=0.9 / BINS, color=BLUE)
    below.set_yscale("log")
    below.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    below.yaxis.set_minor_formatter(NullFormatter())  # matplotlib's own write powers of ten as formulas
    below.set_ylim(bottom=0.8)
    below.set_ylabel("how many")
    below.set_xlabel(what)
    caption = (
        "Below the dashed line the model is too sure of itself, above it too modest. Underneath: how many there are."
    )
    return picture("Reliability", caption, figure)


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
    return picture("Threshold", caption, figure)


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
    return picture("Thresholds", caption, figure)


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
        axes.set_title(short(labels[place]))
    return picture("Scores and truth", "A point a row; on the dashed line the score is the truth.", figure)


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
    return picture("Margins", caption, figure)


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
    return picture(
        "Drift between the two models", "How far a row's scores move from the first model to the second.", figure
    )

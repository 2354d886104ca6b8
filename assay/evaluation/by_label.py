"""A small picture for each label: its threshold, and where its scores lie. Knows no model and no page."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from assay.evaluation.canvas import BLUE, GREEN, GREY, INK, ORANGE, Picture, picture, short
from assay.evaluation.curves import THRESHOLDS, threshold_curves
from assay.evaluation.metrics import Bools, MultiLabel
from assay.evaluation.ranking import Floats

_COLUMNS = 4


def curves_by_label(judged: MultiLabel, labels: Sequence[str]) -> Picture:
    curves = threshold_curves(judged.probs, judged.targets)

    def draw(axes: Axes, place: int) -> None:
        for values, color in ((curves.precision, ORANGE), (curves.recall, GREEN), (curves.f1, BLUE)):
            axes.plot(THRESHOLDS, values[:, place], color=color, linewidth=1.2)
        axes.axvline(judged.thresholds[place], color=GREY, linestyle=":", linewidth=1)
        axes.set_ylim(0, 1.03)

    keys = {"precision": ORANGE, "recall": GREEN, "F1": BLUE}
    caption = "By label, as the threshold moves (across). Dotted: the threshold that is used."
    return picture("Thresholds by label", caption, _small(labels, draw, keys))


def scores_by_label(probs: Floats, truth: Bools, labels: Sequence[str], thresholds: Floats | None) -> Picture:
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
    return picture("Scores by label", caption, _small(labels, draw, keys))


def _small(labels: Sequence[str], draw: Callable[[Axes, int], None], keys: dict[str, str]) -> Figure:
    """A small picture for each label, and one legend above them all."""
    columns = min(_COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    width, height = max(2.6 * columns, 4.2), 1.5 * rows + 0.6  # inches
    figure = Figure(figsize=(width, height))
    edges = {"left": 0.4 / width, "right": 1 - 0.15 / width, "bottom": 0.25 / height, "top": 1 - 0.6 / height}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | {"wspace": 0.22, "hspace": 0.42})
    for place, axes in enumerate(grid.flat):
        if place >= len(labels):
            axes.set_axis_off()
            continue
        draw(axes, place)
        axes.set_title(short(labels[place]), fontsize=8.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(labelsize=7, labelbottom=place + columns >= len(labels))
    handles = [Patch(color=color, label=name) for name, color in keys.items()]
    figure.legend(handles=handles, loc="upper left", ncols=len(keys), fontsize=8.5)
    return figure

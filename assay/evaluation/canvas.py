"""How a report's pictures look, and how they become SVG. Knows no score and no label.

Drawn without pyplot, so without a display and without state.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#0b5fa5", "#c8500a", "#2e7d32", "#8a8f98", "#1d2329"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # texts stay texts: the browser has the glyphs that matplotlib's font lacks
    "svg.hashsalt": "assay",  # the same data, the same file
    "text.parse_math": False,  # a label is no formula, whatever it holds
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
_LONGEST = 28  # characters of a label beside a picture


@dataclass(frozen=True, slots=True)
class Picture:
    """caption: how it is read. svg: a document of its own."""

    title: str
    caption: str
    svg: str


@contextmanager
def drawing() -> Iterator[None]:
    """Whatever is drawn in here looks alike."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def picture(title: str, caption: str, figure: Figure) -> Picture:
    target = io.StringIO()
    figure.savefig(target, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    return Picture(title, caption, svg[svg.index("<svg") :])


def short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"

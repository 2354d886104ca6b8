"""Throughput against latency, a line a server, a point a number of callers. Knows the report of http_load alone."""

from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's, for any eyes


def plot(report: dict[str, Any], path: Path) -> None:
    """Texts a second against the median latency, each point with its number of callers. The ending says the format."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    with mpl.rc_context({"svg.hashsalt": "assay", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
        for colour, (name, by) in zip(COLOURS, report["servers"].items(), strict=False):
            latency = [one["p50_ms"] for one in by.values()]
            speed = [one["requests_per_second"] for one in by.values()]
            axes.plot(latency, speed, marker="o", color=colour, label=name, linewidth=2.2 if name == "assay" else 1.2)
            for many, x, y in zip(by, latency, speed, strict=True):
                axes.annotate(many, (x, y), xytext=(3, 5), textcoords="offset points", fontsize=7, color=colour)
        axes.set(xscale="log", xlabel="latency of a request, median, ms", ylabel="texts a second, one a request")
        axes.set_ylim(bottom=0)
        axes.set_title(
            f"{report['model']}, mixed lengths; numbers are callers; {_where(report['machine'])}", fontsize=8
        )
        axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _where(machine: dict[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}"

"""What `assay evaluate` prints of a report: a table of metrics, and one of labels."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.evaluation.metrics import METRICS
from assay.evaluation.page import NAMES, columns_of
from assay.evaluation.report import in_words

_SHORT = {"average_precision": "AP"}  # what does not fit into 80 columns
_WIDE = 1000  # columns; wider than any table
_LABELS = 30  # lines of the table by label; the page has all


def print_report(report: Mapping[str, Any]) -> None:
    """A model, or two, on labelled data: what was read, a line a metric, a line a label."""
    console = Console()
    data, model, compared = report["data"], report["model"], report.get("compared")
    rows = f"{data['rows']:,} {'pairs' if report['task'] == 'pairs' else 'rows'} of {', '.join(data['files'])}"
    console.print(Text(f"{model['title']} on {rows}", style="bold"))
    read = model["read_as"] or f"{', '.join(data['label_columns'])} ({data['labels_read']})"
    console.print(Text(f"Read: {', '.join(data['inputs'])}; {read}"))
    left_out = data["left_out"] + len(data["skipped"])
    if left_out:
        console.print(Text(f"{left_out:,} rows are left out."))
    table = _overall(report)
    if compared is not None and _width(console, table) > console.width:  # two lines a metric are no table
        table = _overall(report, short=True)
        console.print(Text(f"first: {model['title']}; second: {compared['title']}"))
    console.print(table)
    if compared is not None and report["comparison"]["verdict"]:
        console.print(Text(report["comparison"]["verdict"]))
    if model["labels"]:
        _print_labels(console, model)


def _width(console: Console, table: Table) -> int:
    """Of the table as it would like to be."""
    return console.measure(table, options=console.options.update(width=_WIDE)).maximum


def _overall(report: Mapping[str, Any], short: bool = False) -> Table:
    """A line a metric: of one model its value, of two both and their difference.

    short: without the models' names, and no interval but the difference's.
    """
    compared = report.get("compared")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    metrics = report["model"]["metrics"]
    columns = [{name: in_words(value, interval=not short) for name, value in metrics.items()}]
    if compared is None:
        table.add_column(Text(f"[{report['confidence']:.0%} interval]" if report["resamples"] else ""))
    else:
        columns.append({name: in_words(value, interval=not short) for name, value in compared["metrics"].items()})
        differences = report["comparison"]["differences"]
        columns.append({name: in_words(value, signed=True) for name, value in differences.items()})
        names = ("first", "second") if short else (report["model"]["title"], compared["title"])
        for title in (*names, "second − first"):
            table.add_column(Text(title))
    for name in metrics:
        table.add_row(METRICS[name].title, *(Text(column[name]) for column in columns))
    return table


def _print_labels(console: Console, model: Mapping[str, Any]) -> None:
    """Weakest last where all fit, else only the weakest."""
    names = columns_of(model)
    if not names:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("label")
    for name in names:
        table.add_column(_SHORT.get(name) or NAMES.get(name, name).removesuffix(" [95 %]"), justify="right")
    labels = model["labels"]
    for label in _weakest(labels):
        numbers = [_number(name, labels[label], model.get("thresholds", {}).get(label)) for name in names]
        table.add_row(Text(label), *numbers)
    console.print(table)
    if len(labels) > _LABELS:
        console.print(f"The {_LABELS} labels of lowest F1; report.html has all {len(labels)}.")


def _weakest(labels: Mapping[str, Any]) -> list[str]:
    if len(labels) <= _LABELS:
        return list(labels)
    return sorted(labels, key=lambda label: labels[label]["f1"]["value"])[:_LABELS]


def _number(name: str, values: Mapping[str, Any], threshold: float | None) -> str:
    if name == "support":
        return f"{values['support']:,}"
    if name == "threshold":
        return f"{threshold:.2f}"
    value = values[name]["value"]
    return "–" if value != value else f"{value:.3f}"

"""`assay evaluate`: how good is a model on labelled data, and how far is another from it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.commands.options import configured, options_of, with_options
from assay.commands.progress import model_bars
from assay.config import EngineConfig
from assay.errors import ConfigError
from assay.evaluation.extra import require_extra
from assay.evaluation.settings import DataConfig, EvaluationConfig

_SETTINGS = (
    "model",
    "revision",
    "dtype",
    "device",
    "quantization",
    "calibration",
    "activation",
    "max_model_len",
    "truncate_prompt_tokens",
    "window",
    "chat_template",
    "classifier_from_token",
    "adapter",
    "allow_pickle",
    "max_batch_tokens",
)
_SHORT = {"average_precision": "AP"}  # what does not fit into 80 columns
_WIDE = 1000  # columns; wider than any table
_LABELS = 30  # lines of the table by label; the page has all


@with_options(*options_of(EngineConfig, only=_SETTINGS), *options_of(DataConfig), *options_of(EvaluationConfig))
def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Labelled files or 'globs': .csv, .tsv, .jsonl, .parquet, with .gz or .zst too; - is stdin.",
            show_default=False,
        ),
    ],
    **values: Any,
) -> None:
    """Measure a model on labelled data: a table here, report.json, and report.html with pictures and mistakes.

    assay evaluate test.csv -m unitary/toxic-bert --label-column toxic

    assay evaluate test.csv -m ./model --compare-quantization int8

    assay evaluate pairs.jsonl -m ./reward-model --prompt-column prompt --chosen-column good --rejected-column bad
    """
    require_extra("evaluate")
    from assay.evaluation.evaluate import evaluate as run
    from assay.evaluation.figures import pictures_of
    from assay.evaluation.page import page_of
    from assay.evaluation.report import report_of, write_report

    config = configured(EvaluationConfig, values)
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and the reports go into a folder; name another with -o.")
    with model_bars() as watch:
        evaluation = run(data, configured(EngineConfig, values), configured(DataConfig, values), config, watch)
    report = report_of(evaluation, config.mistakes)
    write_report(report, page_of(report, pictures_of(evaluation)), folder)
    _print_report(report)
    print(f"Written: {folder / 'report.json'}, {folder / 'report.html'}")


def _print_report(report: Mapping[str, Any]) -> None:
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
    from assay.evaluation.metrics import METRICS
    from assay.evaluation.report import in_words

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
    from assay.evaluation.page import NAMES, columns_of

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

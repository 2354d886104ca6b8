"""`assay evaluate`: how good is a model on labelled data, and how far is another from it?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.options import configured, options_of, with_options
from assay.config import EngineConfig
from assay.errors import ConfigError
from assay.evaluation.extra import require_extra
from assay.evaluation.settings import DataConfig, EvaluationConfig
from assay.imports import importing_torch

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
    with importing_torch(own_process=True):
        from assay.commands.progress import model_bars
        from assay.commands.report import print_report
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
    print_report(report)
    print(f"Written: {folder / 'report.json'}, {folder / 'report.html'}")

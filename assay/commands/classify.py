"""`assay classify`: files to files, or texts on the spot."""

import gc
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.commands.options import configured, options_of, with_options
from assay.config import EngineConfig, settings
from assay.files.settings import JobConfig
from assay.imports import importing_torch

if TYPE_CHECKING:
    from assay.files.plan import Plan

_TOP = 5  # labels shown of a text

# Of callers that wait, whom a job has not.
_OF_SERVERS = (
    "name",
    "trust_request_chat_template",
    "max_queue_tokens",
    "max_cache_bytes",
    "when_full",
    "priority_order",
    "tokenizer_threads",
    "tokenizer_timeout",
)


@with_options(*options_of(EngineConfig, without=_OF_SERVERS), *options_of(JobConfig))
def classify(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="Files or 'globs': .csv, .tsv, .jsonl, .parquet, .txt, with .gz or .zst too; - is stdin.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to score at once; may be repeated.")] = None,
    top: Annotated[int, typer.Option(help="Labels to show for each --text; 0 shows all.", min=0)] = _TOP,
    as_json: Annotated[bool, typer.Option("--json", help="Of --text: one JSON object a line, every label.")] = False,
    **values: Any,
) -> None:
    """Score a file's texts into a file, or texts on the spot. A job that was ended continues when it is run again.

    assay classify reviews.csv -o scored.csv

    assay classify 'bucket/*.parquet' -m unitary/toxic-bert -o scored.parquet --text-column body --probs

    assay classify --text "Loved the new café—coffee was great."
    """
    if bool(inputs) == bool(text):
        raise typer.BadParameter("give files to read, or --text; one of them", param_hint="INPUT")
    if inputs:
        if as_json or top != _TOP:
            raise typer.BadParameter("--top and --json are for --text; of files, say --top-k and name a .jsonl")
        _run_job(inputs, values)
    else:
        config, usual = configured(JobConfig, values), JobConfig()
        said = [name for name in settings(JobConfig) if getattr(config, name) != getattr(usual, name)]
        if said:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise typer.BadParameter(f"--text is scored and shown on the spot; {flags}: only of files")
        _score_texts(text or [], top, as_json, values)


def _run_job(inputs: list[str], values: dict[str, Any]) -> None:
    """A file in, a file out; what is said of it goes to stderr."""
    with importing_torch(own_process=True):
        from assay.files.plan import plan

    planned = plan(inputs, configured(EngineConfig, values), configured(JobConfig, values))
    if planned.job.columns.guessed:
        _say(f"The text is taken from column {planned.job.columns.text!r}.")
    try:
        _run(planned)
    except (KeyboardInterrupt, OSError) as error:
        _say("Stopped." if planned.config.output == "-" else "Stopped. The same command continues it.")
        if isinstance(error, OSError):
            raise
        raise typer.Exit(130) from None


def _run(planned: "Plan") -> None:
    from assay.commands.progress import JobProgress
    from assay.files.unfinished import State

    unfinished = planned.open()
    start = State() if unfinished is None else unfinished.state
    if start.blocks:
        _say(f"Continued after {start.rows:,} rows.")
    gc.set_threshold(100_000)  # the rows of a block are no garbage: looking through them was a third of the time
    with JobProgress(planned.job.reader.num_bytes, start) as progress:
        state = planned.run(unfinished, progress)
    progress.summarize(state, planned.config.output)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _score_texts(texts: list[str], top: int, as_json: bool, values: dict[str, Any]) -> None:
    with importing_torch(own_process=True):
        from assay.classifier import Classifier
        from assay.commands.tables import print_bars

    with Classifier(configured(EngineConfig, values)) as classifier:
        predictions = classifier.classify(texts)
        if as_json:
            for one_text, prediction in zip(texts, predictions, strict=True):
                probs = dict(zip(classifier.labels, prediction.probs, strict=True))
                print(json.dumps({"text": one_text, "label": prediction.label, "probs": probs}, ensure_ascii=False))
        else:
            for one_text, prediction in zip(texts, predictions, strict=True):
                print_bars(one_text, prediction, classifier.labels, top)

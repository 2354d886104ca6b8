"""From settings to a job that can be run: what is read, scored and written, and what the output depends on."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay import __version__
from assay.config import EngineConfig
from assay.errors import ConfigError
from assay.files.added import Added
from assay.files.arrow import ArrowWriter
from assay.files.fingerprint import digest, input_fingerprint, model_fingerprint
from assay.files.inputs import TextColumns
from assay.files.job import Job, Watcher, run_to_file, run_to_stdout
from assay.files.readers import Reader, read_rows
from assay.files.scorer import Scorer
from assay.files.settings import Format, JobConfig
from assay.files.sources import STDIO, is_file, split_name
from assay.files.unfinished import State, Unfinished, check_output
from assay.files.writers import DelimitedWriter, JsonlWriter, Writer
from assay.model.weights import resolve

# What the scores do not depend on, or what is compared by content.
_NOT_COMPARED = ("model", "name", "revision", "adapter")
_NOT_THE_OUTPUT = ("output", "overwrite", "on_error", "id_column", "input_format", "output_format", "text_column")


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, where it goes, and what that depends on. output: a format."""

    job: Job
    config: JobConfig
    output: Format
    fingerprint: dict[str, Any]

    def open(self) -> Unfinished | None:
        """What an earlier run left, or a new beginning; None for stdout. Raises ConfigError."""
        if self.config.output == STDIO:
            return None
        return Unfinished(Path(self.config.output), self.fingerprint, self.config.overwrite)

    def run(self, unfinished: Unfinished | None, watcher: Watcher) -> State:
        """To the end. Raises RequestError for a row that stops the job."""
        with unfinished or nullcontext():
            if unfinished is None:
                return run_to_stdout(self.job, watcher)
            run_to_file(self.job, unfinished, self.fingerprint, self.output == "parquet", watcher)
            return unfinished.state


def plan(inputs: Sequence[str], engine: EngineConfig, config: JobConfig) -> Plan:
    """Read the heads of the files, then load the model. Raises ConfigError, RequestError or CheckpointError."""
    quotes = None if config.quotes == "auto" else config.quotes == "yes"
    reader = read_rows(inputs, config.input_format, not config.no_header, quotes, config.delimiter)
    columns = TextColumns.of(reader, config.text_column, config.text_pair_column, config.id_column)
    output, codec = _output_format(config, reader)
    if config.output != STDIO:
        _check_no_input(Path(config.output), reader)
        check_output(Path(config.output), config.overwrite)
    scorer = Scorer.load(engine, config.on_too_long)
    added = Added(scorer.labels, config.probs, config.logits, config.top_k, config.on_error == "null", config.prefix)
    added.check_free(reader.columns)
    writer = _writer(output, reader, added, quotes)
    job = Job(reader, columns, scorer, added, writer, codec, config.on_error)
    return Plan(job, config, output, _fingerprint(job, engine, config, output))


def _check_no_input(out: Path, reader: Reader) -> None:
    if out.exists() and any(is_file(source) and out.samefile(source) for source in reader.sources):
        raise ConfigError(f"{out} is both input and output; name another output.")


def _output_format(config: JobConfig, reader: Reader) -> tuple[Format, str | None]:
    """(format, codec) of the output: by its name; else on stdout the input's, where that can be."""
    named, codec = split_name(config.output)
    output = config.output_format or named
    if output is None and config.output == STDIO:
        output = {"parquet": None, "text": "tsv"}.get(reader.format, reader.format)
    if output is None or output == "text":
        raise ConfigError(
            f"output is {config.output!r}; its ending must be .csv, .tsv, .jsonl (each may go on with .gz or .zst) or "
            ".parquet, or --output-format must say which."
        )
    if output == "parquet" and (codec is not None or config.output == STDIO):
        raise ConfigError("Parquet is compressed inside, and written to a file: name the output like scores.parquet.")
    return output, codec


def _writer(output: Format, reader: Reader, added: Added, quotes: bool | None) -> Writer:
    match output:
        case "jsonl":
            return JsonlWriter(added)
        case "parquet":
            return ArrowWriter(reader, added)
    delimiter = reader.delimiter if output == reader.format else "," if output == "csv" else "\t"
    return DelimitedWriter(reader.columns, added, delimiter, output == "csv" if quotes is None else quotes)


def _fingerprint(job: Job, engine: EngineConfig, config: JobConfig, output: Format) -> dict[str, Any]:
    """Everything that the output's bytes depend on: plain data, by names that a person knows."""
    found: dict[str, Any] = {
        "input": input_fingerprint(job.reader.sources),
        "model": model_fingerprint(resolve(engine.model, engine.revision, engine.allow_pickle)),
        "adapter": model_fingerprint(resolve(engine.adapter)) if engine.adapter else None,
        "assay's version": __version__,
        "the input's format": job.reader.format,
        "the output's format": [output, job.codec],
        "the text column": job.columns.text,
        "--on-error null": config.on_error == "null",
    }
    for name, value in asdict(engine).items():
        if name not in _NOT_COMPARED:
            named = isinstance(value, str) and Path(value).is_file()
            found[_option(name)] = digest(Path(value)) if named else value
    return found | {_option(name): value for name, value in asdict(config).items() if name not in _NOT_THE_OUTPUT}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

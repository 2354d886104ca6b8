"""What may be set of a job over files, beside the model. Knows no file."""

from dataclasses import dataclass
from typing import Annotated, Literal

from assay.config import Setting, check
from assay.errors import ConfigError

Format = Literal["csv", "tsv", "jsonl", "parquet", "text"]
OnTooLong = Literal["error", "truncate", "window"]
OnError = Literal["stop", "skip", "null"]
Quotes = Literal["auto", "yes", "no"]
OutputFormat = Literal["csv", "tsv", "jsonl", "parquet"]


@dataclass(frozen=True, slots=True)
class JobConfig:
    """How a file becomes a file."""

    output: Annotated[
        str, Setting("Where the scores go; its ending says the format: .csv, .tsv, .jsonl (.gz, .zst), .parquet.")
    ] = "-"
    text_column: Annotated[str | None, Setting("Column with the text. Default: the only one it can be.")] = None
    text_pair_column: Annotated[str | None, Setting("Column with the second text of a pair.")] = None
    id_column: Annotated[str | None, Setting("Column that names a row in reports, beside its line.")] = None
    probs: Annotated[bool, Setting("Add a column prob_LABEL for each label.")] = False
    logits: Annotated[bool, Setting("Add a column logit_LABEL for each label.")] = False
    top_k: Annotated[int, Setting("Labels a row, best first: label_2, score_2, …", least=1)] = 1
    prefix: Annotated[str, Setting("Before the names of added columns, such as predicted_.")] = ""
    on_too_long: Annotated[
        OnTooLong | None, Setting("A text longer than the model reads is an error, is cut, or is scored in windows.")
    ] = None
    on_error: Annotated[OnError, Setting("A row without a score ends the job, is left out, or gets nulls.")] = "stop"
    input_format: Annotated[Format | None, Setting("Format of INPUT, where its name does not say it.")] = None
    output_format: Annotated[OutputFormat | None, Setting("Format of the output, where its name does not say it.")] = (
        None
    )
    no_header: Annotated[bool, Setting("The first row of CSV and TSV is a row; columns are column_1, column_2, …")] = (
        False
    )
    delimiter: Annotated[
        str | None, Setting("What stands between fields of CSV, in and out: ';' in many of Excel's. Default: a comma.")
    ] = None
    quotes: Annotated[Quotes, Setting('Whether fields may be written "in quotes". auto: in CSV, not in TSV.')] = "auto"
    overwrite: Annotated[bool, Setting("Replace the output, and what an unfinished other job left.")] = False

    def __post_init__(self) -> None:
        check(self)
        if not self.output:
            raise ConfigError("output is empty; give a file, or - for stdout.")

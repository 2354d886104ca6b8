"""What may be set of an evaluation, beside the model. Knows no file and no array."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from assay.config import DType, EngineConfig, Quantization, Setting, check
from assay.errors import ConfigError
from assay.files.settings import Format, OnTooLong, Quotes

OnError = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """How a labelled file is read. label_columns: one with the labels, or one for each label."""

    text_column: Annotated[str | None, Setting("Column with the text. Default: the only one it can be.")] = None
    text_pair_column: Annotated[str | None, Setting("Column with the second text of a pair.")] = None
    label_columns: Annotated[
        tuple[str, ...],
        Setting("Column with the label, or the labels; repeated: a column of 0 and 1, or of numbers, for each label."),
    ] = ()
    ignore_unknown_labels: Annotated[bool, Setting("Leave out labels that the model does not have.")] = False
    on_too_long: Annotated[
        OnTooLong | None, Setting("A text longer than the model reads is an error, is cut, or is scored in windows.")
    ] = None
    on_error: Annotated[OnError, Setting("A row without a score or a label ends it, or is left out.")] = "stop"
    input_format: Annotated[Format | None, Setting("Format of DATA, where its name does not say it.")] = None
    no_header: Annotated[bool, Setting("The first row of CSV and TSV is a row; columns are column_1, column_2, …")] = (
        False
    )
    delimiter: Annotated[
        str | None, Setting("What stands between fields of CSV: ';' in many of Excel's. Default: a comma.")
    ] = None
    quotes: Annotated[Quotes, Setting('Whether fields may be written "in quotes". auto: in CSV, not in TSV.')] = "auto"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What is measured, of what, and where the report goes."""

    output: Annotated[str, Setting("Folder for report.json and report.html.")] = "."
    chosen_column: Annotated[str | None, Setting("Of preference pairs: column with the answer that won.")] = None
    rejected_column: Annotated[str | None, Setting("Of preference pairs: column with the answer that lost.")] = None
    prompt_column: Annotated[str | None, Setting("Of preference pairs: column with what both answer.")] = None
    threshold: Annotated[
        float | None,
        Setting("Probability from which on a label is given, where labels do not exclude each other.", 0, 1),
    ] = None
    resamples: Annotated[
        int | None,
        Setting("Resamples behind the 95 % intervals; 0: no intervals. Default: 1000, fewer of large data.", least=0),
    ] = None
    mistakes: Annotated[int, Setting("How many of the worst mistakes are shown.", least=0)] = 50
    compare: Annotated[str | None, Setting("A second model on the same data: a folder or a hub id.")] = None
    compare_dtype: Annotated[
        DType | None, Setting("Compare with this precision, of the same model or of --compare's.")
    ] = None
    compare_quantization: Annotated[
        Quantization | None, Setting("Compare with this quantization, of the same model or of --compare's.")
    ] = None
    compare_calibration: Annotated[
        str | None, Setting("Compare with this calibration, of the same model or of --compare's.")
    ] = None

    def __post_init__(self) -> None:
        check(self)
        if (self.chosen_column is None) != (self.rejected_column is None):
            raise ConfigError("Pairs need both --chosen-column and --rejected-column.")
        if self.prompt_column is not None and not self.pairs:
            raise ConfigError("--prompt-column goes with --chosen-column and --rejected-column.")

    @property
    def pairs(self) -> bool:
        return self.chosen_column is not None

    def other(self, config: EngineConfig) -> EngineConfig | None:
        """The second model, or the same one run otherwise; None where nothing is compared."""
        asked = {
            "dtype": self.compare_dtype,
            "quantization": self.compare_quantization,
            "calibration": self.compare_calibration,
        }
        changed: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if self.compare is not None:
            another = {"model": self.compare, "name": None, "revision": None, "adapter": None, "calibration": None}
            return replace(config, **another | changed)
        return replace(config, **changed) if changed else None

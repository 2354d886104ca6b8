"""A labelled file → prompts, what is said of them, and where each row stands. Knows no model and no array."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.errors import ConfigError, RequestError
from assay.evaluation.cells import Cell
from assay.evaluation.settings import DataConfig, EvaluationConfig, OnError
from assay.files.blocks import Row, rows_of
from assay.files.readers import Reader, choose_text_column, read_rows
from assay.files.sources import name_of

_LABEL_NAMES = ("label", "labels", "category", "class", "target")


@dataclass(frozen=True, slots=True)
class Columns:
    """inputs: what the model reads: a text; a text and its pair; or of preference pairs a prompt (if there is one), the
    chosen and the rejected answer. labels: one with the labels, or one for each; none of preference pairs.
    conversations: whether an input may be a list of messages.
    """

    inputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    conversations: bool = False


@dataclass
class Dataset:
    """Rows in the order of the file. inputs: by row, the values of `columns.inputs`. places: `reviews.csv, line 7`.

    cells: by label column, one a row. skipped: what was left out, and why.
    """

    sources: tuple[str, ...]
    columns: Columns
    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    cells: dict[str, list[Cell]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def leave_out(self, errors: dict[int, str], on_error: OnError) -> None:
        """Leave out rows, by their place in `inputs`, with what is wrong with them.

        Raises RequestError at the first, unless on_error is "skip".
        """
        for row, error in sorted(errors.items()):
            self._skip(self.places[row], error, on_error)
        kept = [row for row in range(len(self.inputs)) if row not in errors]
        self.inputs = [self.inputs[row] for row in kept]
        self.places = [self.places[row] for row in kept]
        self.cells = {name: [cells[row] for row in kept] for name, cells in self.cells.items()}
        if not kept:
            raise RequestError(f"{', '.join(map(name_of, self.sources))}: there is no row to judge.")

    def _skip(self, place: str, why: str, on_error: OnError) -> None:
        if on_error == "stop":
            raise RequestError(f"{place}: {why.rstrip('.')}. --on-error skip leaves such rows out.")
        self.skipped.append(f"{place}: {why}")


def open_data(paths: Sequence[str], config: DataConfig) -> Reader:
    """Raises ConfigError for files that are not there, RequestError for those that cannot be read."""
    quotes = None if config.quotes == "auto" else config.quotes == "yes"
    return read_rows(paths, config.input_format, not config.no_header, quotes, config.delimiter)


def read_dataset(reader: Reader, columns: Columns, on_error: OnError) -> Dataset:
    """Raises RequestError for a row that cannot be used, unless on_error is "skip"."""
    data = Dataset(reader.sources, columns, cells={name: [] for name in columns.labels})
    for row, problem in _rows(reader):
        place = f"{name_of(row.source)}, line {row.line}"
        why = problem or _wrong(row, columns)
        if why:
            data._skip(place, why, on_error)
            continue
        data.inputs.append(tuple(row.values[name] for name in columns.inputs))
        data.places.append(place)
        for name, cells in data.cells.items():
            cells.append(Cell(place, row.values.get(name)))
    data.leave_out({}, on_error)
    return data


def _rows(reader: Reader) -> Iterator[tuple[Row, str]]:
    for block in reader.blocks():
        for place, row in enumerate(rows_of(block)):
            yield row, block.problems.get(place, "")


def _wrong(row: Row, columns: Columns) -> str:
    for name in columns.inputs:
        value = row.values.get(name)
        if (
            value is None
            or (isinstance(value, str | list) and not value)
            or (isinstance(value, str) and value.isspace())
        ):
            return f"{name!r} is empty"
        if not isinstance(value, (str, list) if columns.conversations else str):
            return f"{name!r} is {str(value)[:60]!r}, of type {type(value).__name__}, and no text"
    return ""


def labelled_columns(reader: Reader, config: DataConfig, labels: Sequence[str]) -> Columns:
    """The columns that were asked for, or those there are. labels: the model's, which may be the names of columns.

    Raises ConfigError that lists the columns.
    """
    for name in config.label_columns:
        choose_text_column(reader.columns, name, option="--label-column")
    label_columns = config.label_columns or _label_columns(reader.columns, labels)
    pair = config.text_pair_column
    if pair is not None:
        choose_text_column(reader.columns, pair, option="--text-pair-column")
    left = [name for name in reader.texts if name not in (*label_columns, pair)]
    text = choose_text_column(reader.columns, config.text_column, left)
    return Columns((text,) if pair is None else (text, pair), label_columns)


def pair_columns(reader: Reader, config: EvaluationConfig) -> Columns:
    """Of preference pairs. Raises ConfigError that lists the columns."""
    options = ("--prompt-column", "--chosen-column", "--rejected-column")
    asked = (config.prompt_column, config.chosen_column, config.rejected_column)
    found = [
        choose_text_column(reader.columns, name, option=option)
        for option, name in zip(options, asked, strict=True)
        if name is not None
    ]
    return Columns(tuple(found), conversations=True)


def _label_columns(existing: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The one with a usual name; else those named as the model's labels."""
    usual = [name for name in existing if name.strip().lower() in _LABEL_NAMES]
    if len(usual) == 1:
        return (usual[0],)
    of_labels = tuple(label for label in labels if label in existing)
    if of_labels and not usual:
        return of_labels
    raise ConfigError(
        f"Say which column holds the label, with --label-column. The columns are: {', '.join(map(repr, existing))}."
    )

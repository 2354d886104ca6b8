"""CSV, TSV, JSONL, Parquet and plain text to rows, streamed. Knows no model.

A row that cannot be read is told with its line: `Reader.blocks` hands it on with its problem, iteration raises.
Blank lines are no rows.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from assay.errors import ConfigError, RequestError
from assay.files.blocks import Block, Opened, Row, rows_of
from assay.files.delimited import open_delimited
from assay.files.lines import open_jsonl, open_text
from assay.files.parquet import open_parquet
from assay.files.settings import Format
from assay.files.sources import expand, file_size, format_of, is_file, name_of

# Names that people give to the column with the text, and to those that are none.
_TEXT_NAMES = {"text", "texts", "sentence", "review", "comment", "content", "body", "message", "document", "input"}
_OTHER_NAMES = {"", "id", "idx", "index", "uid", "uuid", "label", "labels", "category", "class", "target", "score"}


class Reader:
    """The rows of some files, in order, as often as they are asked for (of stdin and pipes: once).

    columns: of all files; of JSONL, those of the first rows. texts: those of them that may hold texts. format: one for
    all. delimiter: between fields of CSV and TSV. schema: of Parquet, else None. sample: the first objects of JSONL.
    """

    def __init__(
        self, sources: tuple[str, ...], form: Format, header: bool, quotes: bool, delimiter: str = ","
    ) -> None:
        """Reads the head of every file, so that what does not fit is refused before any work. Raises RequestError."""
        self.sources = sources
        self.format = form
        self.delimiter = "\t" if form == "tsv" else delimiter
        self._header = header
        self._quotes = quotes
        self._pipes: dict[str, Opened] = {}
        self._bytes_before = 0
        self._current: Opened | None = None
        self.columns: tuple[str, ...] = ()
        self.texts: tuple[str, ...] = ()
        self.schema: pa.Schema | None = None
        self.sample: Sequence[dict[str, Any]] = ()
        for source in sources:
            opened = self._open(source)
            if is_file(source):
                with closing(opened):
                    self._take_head(source, opened)
            else:
                self._pipes[source] = opened
                self._take_head(source, opened)
        if form == "jsonl" and not self.sample:
            raise RequestError(f"{', '.join(map(name_of, sources))} is empty: it has no rows.")

    def blocks(self) -> Generator[Block]:
        """All rows, in blocks whose bounds depend on nothing but the files."""
        self._bytes_before = 0
        for source in self.sources:
            opened = self._open(source) if is_file(source) else self._pipes.pop(source, None)
            if opened is None:
                raise RequestError(f"{name_of(source)} is a pipe, which can be read only once.")
            with closing(opened):
                self._current = opened
                yield from opened.blocks
            self._current = None
            self._bytes_before += file_size(source)

    @property
    def num_bytes(self) -> int:
        """Of all files as they lie on the disk; 0 of a pipe."""
        return sum(map(file_size, self.sources))

    @property
    def bytes_read(self) -> int:
        """Of `num_bytes`, by the latest pass."""
        return self._bytes_before + (self._current.tell() if self._current is not None else 0)

    def __iter__(self) -> Iterator[Row]:
        """Raises RequestError at a row that cannot be read."""
        for block in self.blocks():
            for place, problem in sorted(block.problems.items()):
                raise RequestError(f"{name_of(block.source)}, line {block.lines[place]}: {problem}.")
            yield from rows_of(block)

    def _open(self, source: str) -> Opened:
        match self.format:
            case "csv" | "tsv":
                return open_delimited(source, self.delimiter, self._header, self._quotes)
            case "jsonl":
                return open_jsonl(source)
            case "parquet":
                return open_parquet(source)
            case "text":
                return open_text(source)

    def _take_head(self, source: str, opened: Opened) -> None:
        """Raises RequestError where a file's columns are not the first one's."""
        first = self.sources[0]
        if source == first or (self.format == "jsonl" and not self.sample):  # a part of a table may be empty
            self.columns, self.texts = opened.columns, opened.texts
            self.schema, self.sample = opened.schema, opened.sample
        if self.format != "jsonl" and set(opened.columns) != set(self.columns):
            only = [sorted(set(self.columns) - set(opened.columns)), sorted(set(opened.columns) - set(self.columns))]
            raise RequestError(f"Columns differ: {only[0]} are only in {first}, {only[1]} only in {source}.")
        if self.schema is not None and opened.schema is not None:
            for column in self.schema:
                other = opened.schema.field(column.name)
                if other.type != column.type:
                    raise RequestError(
                        f"Column {column.name!r} is {column.type} in {first} and {other.type} in {source}."
                    )


def read_rows(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    format: str | None = None,  # noqa: A002
    header: bool = True,
    quotes: bool | None = None,
    delimiter: str | None = None,
) -> Reader:
    """Read files, globs, or `-` for stdin; `.gz` and `.zst` too.

    format: csv, tsv, jsonl, parquet or text; None goes by the names. header: whether the first row of CSV and TSV names
    the columns, else they are column_1, column_2, …  quotes: whether a field may be written "in quotes"; None: in CSV.
    delimiter: what stands between fields of CSV; None: a comma.
    Raises ConfigError for what is not there, RequestError for what cannot be read.
    """
    sources = expand([paths] if isinstance(paths, str | os.PathLike) else paths)
    form = format_of(sources, format)
    if delimiter is not None and form != "csv":
        raise ConfigError(f"delimiter is {delimiter!r}, and that is for CSV; the input is {form}.")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigError(f"delimiter is {delimiter!r}; it must be one character, like ';', and no quote or line end.")
    return Reader(sources, form, header, form == "csv" if quotes is None else quotes, delimiter or ",")


def choose_text_column(
    columns: Sequence[str], asked: str | None, texts: Sequence[str] | None = None, option: str = "--text-column"
) -> str:
    """The column that was asked for, or the only one that may hold the text. Raises ConfigError that lists them all.

    texts: the columns that hold texts, where that is known.
    """
    listed = f"The columns are: {', '.join(map(repr, columns))}."
    if asked is not None:
        if asked not in columns:
            raise ConfigError(f"{option} is {asked!r}, and there is no such column. {listed}{_maybe_headless(columns)}")
        return asked
    if len(columns) == 1 and (mark := next((mark for mark in ";\t" if mark in columns[0]), None)):
        hint = "--input-format tsv" if mark == "\t" else f"--delimiter '{mark}'"
        raise ConfigError(
            f"The only column is {columns[0]!r}: its fields seem to be separated by {mark!r}. Say so with "
            f"{hint}. If it is one column of texts, name it with {option}."
        )
    possible = columns if texts is None else texts
    if columns and not possible:
        raise ConfigError(f"No column is left that holds texts; {option} names one. {listed}")
    named = [name for name in possible if name.strip().lower() in _TEXT_NAMES]
    others = [name for name in possible if name.strip().lower() not in _OTHER_NAMES]
    for candidates in (named, others):
        if len(candidates) == 1:
            return candidates[0]
    raise ConfigError(f"Say which column holds the text, with {option}. {listed}{_maybe_headless(columns)}")


def _maybe_headless(columns: Sequence[str]) -> str:
    """A header's names are seldom sentences or numbers."""
    if any(len(name) > 60 or name.replace(".", "").isdigit() for name in columns):
        return " If that is no header but a row, say so with --no-header."
    return ""

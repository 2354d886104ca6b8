"""Rows of a file, some thousands at a time, in the shape that their format has. Knows no format and no model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from assay.errors import RequestError
from assay.files.sources import is_unicode, name_of

# A block's bounds depend on its file alone, so that a job that is run again cuts it as before.
BLOCK_ROWS = 4096
BLOCK_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class Row:
    """One row. line: where it begins in its file, counted from 1; of Parquet, which has no lines, its number."""

    source: str
    line: int
    values: dict[str, Any]


class Block(Protocol):
    """Neighbouring rows of one file.

    lines: where each begins, as in Row. problems: what is wrong with a row that could not be read, by its place in the
    block; its values are None, or what could be read of them.
    """

    source: str
    lines: list[int]
    problems: dict[int, str]

    def column(self, name: str) -> list[Any]:
        """The values of a column; None where a row has none."""

    def records(self) -> list[dict[str, Any]]:
        """The rows, each a new dict."""


@dataclass
class ColumnBlock:
    """Of CSV, TSV and plain text: columns of str."""

    source: str
    lines: list[int]
    columns: Mapping[str, list[Any]]
    problems: dict[int, str] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        return self.columns[name]

    def records(self) -> list[dict[str, Any]]:
        names = list(self.columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


@dataclass
class RecordBlock:
    """Of JSONL: objects, whose keys may differ."""

    source: str
    lines: list[int]
    objects: list[dict[str, Any]]
    problems: dict[int, str] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        return [record.get(name) for record in self.objects]

    def records(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self.objects]


@dataclass
class ArrowBlock:
    """Of Parquet: columns with types, kept as they are until somebody asks for values."""

    source: str
    lines: list[int]
    batch: pa.RecordBatch
    problems: dict[int, str] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        return _plain_values(self.batch.column(self._places[name]), f"{self.source}: {name!r}")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.batch.schema.names)}

    def records(self) -> list[dict[str, Any]]:
        columns = [self.column(name) for name in self.batch.schema.names]
        return [dict(zip(self.batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain_values(column: pa.Array, called: str) -> list[Any]:
    """As Python has them. Dates and times as text, which holds their nanoseconds; bytes, where text is no UTF-8."""
    kind = column.type
    try:
        if pa.types.is_duration(kind):
            return list(column.cast(pa.int64()).to_pylist())
        if pa.types.is_temporal(kind):
            texts = column.cast(pa.string()).to_pylist()
            return [text and text.replace(" ", "T", 1) for text in texts]
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
            raise RequestError(f"{called} holds text that is no UTF-8.") from None
        return [_text_or_bytes(raw) for raw in column.cast(pa.binary()).to_pylist()]
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{called} holds a value that cannot be read: {error}") from error


def _text_or_bytes(raw: bytes | None) -> str | bytes | None:
    try:
        return raw if raw is None else raw.decode()
    except UnicodeDecodeError:
        return raw


@dataclass(frozen=True, slots=True)
class Opened:
    """A file whose head has been read.

    tell: bytes of it that have been read. texts: the columns that may hold texts. schema: of Parquet. sample: the first
    objects of JSONL.
    """

    columns: tuple[str, ...]
    blocks: Iterator[Block]
    tell: Callable[[], int]
    close: Callable[[], None]
    texts: tuple[str, ...]
    schema: pa.Schema | None = None
    sample: Sequence[dict[str, Any]] = ()


def check_names(source: str, columns: tuple[str, ...]) -> None:
    """Raises RequestError for names that nobody could tell apart, or read."""
    for name in columns:
        if not is_unicode(name):
            raise RequestError(f"{name_of(source)}, line 1: the header is no UTF-8; save the file as UTF-8.")
        if columns.count(name) > 1:
            raise RequestError(f"{name_of(source)} has more than one column {name!r}; rename all but one.")


def rows_of(block: Block) -> Iterator[Row]:
    """Each row of a block, those with problems too."""
    for line, record in zip(block.lines, block.records(), strict=True):
        yield Row(block.source, line, record)

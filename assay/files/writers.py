"""Blocks and their scores to text: CSV, TSV and JSONL. Knows no disk and no compression.

A block's bytes depend on that block alone, so that a file may end after any of them and be continued.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Sequence as Seq
from datetime import date, time
from typing import Any, Protocol

from assay.errors import RequestError
from assay.files.added import Added, Values
from assay.files.blocks import Block, ColumnBlock, RecordBlock
from assay.files.sources import name_of


class Writer(Protocol):
    """How rows become bytes."""

    def head(self) -> bytes:
        """What stands before the first row."""

    def rows(self, block: Block, added: dict[str, Values], kept: Seq[int]) -> bytes:
        """The rows at the places that are kept. Raises RequestError for what the format cannot hold."""


class DelimitedWriter:
    """CSV and TSV. A null is an empty field; what is nested is written as JSON."""

    def __init__(self, columns: tuple[str, ...], added: Added, delimiter: str, quotes: bool) -> None:
        self._columns = columns
        self._added = added.names
        self._delimiter = delimiter
        self._quotes = quotes

    def head(self) -> bytes:
        return self._written([(*self._columns, *self._added)])

    def rows(self, block: Block, added: dict[str, Values], kept: Seq[int]) -> bytes:
        check_columns(block, self._columns)
        columns: list[Seq[Any]] = [_fields(block, name) for name in self._columns]
        columns += [added[name] for name in self._added]
        rows = list(zip(*columns, strict=True))
        try:
            return self._written([rows[place] for place in kept])
        except csv.Error:
            raise RequestError(
                f"{name_of(block.source)}, lines {block.lines[0]} to {block.lines[-1]}: a value holds a tab or a line "
                "end, which TSV without quotes cannot. Add --quotes yes, or write .csv or .jsonl."
            ) from None

    def _written(self, rows: Seq[Seq[Any]]) -> bytes:
        text = self._text(rows, "\n")
        if "\r" in text:  # which the module quotes only where the line's end has one
            text = "".join(self._text([row], "\r\n")[:-2] + "\n" for row in rows)
        return text.encode("utf-8", "replace")  # a lone surrogate, out of JSON, has no place in UTF-8

    def _text(self, rows: Seq[Seq[Any]], line_end: str) -> str:
        buffer = io.StringIO()
        if self._quotes:
            writer = csv.writer(buffer, delimiter=self._delimiter, lineterminator=line_end)
        else:
            writer = csv.writer(
                buffer, delimiter=self._delimiter, lineterminator=line_end, quoting=csv.QUOTE_NONE, quotechar=None
            )
        writer.writerows(rows)
        return buffer.getvalue()


class JsonlWriter:
    """An object a line: the keys that came, in their order, and those that are added."""

    def __init__(self, added: Added) -> None:
        self._added = added

    def head(self) -> bytes:
        return b""

    def rows(self, block: Block, added: dict[str, Values], kept: Seq[int]) -> bytes:
        records, names = block.records(), tuple(added)
        for record, values in zip(records, zip(*added.values(), strict=True), strict=True):
            if not record.keys().isdisjoint(names):
                self._added.check_free(tuple(record))
            record.update(zip(names, values, strict=True))
        text = "".join(_json(records[place]) + "\n" for place in kept)
        return text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON writes it: \ud800


def check_columns(block: Block, columns: tuple[str, ...]) -> None:
    """Raises RequestError where an object has a key that the first ones had not: it has no place in a table."""
    if not isinstance(block, RecordBlock):
        return
    known = set(columns)
    for line, record in zip(block.lines, block.objects, strict=True):
        if not record.keys() <= known:
            raise RequestError(
                f"{name_of(block.source)}, line {line} has the key {min(record.keys() - known)!r}, which none of the "
                "first rows has, so that the output has no column for it. Write .jsonl."
            )


def plain_json(value: Any) -> str:
    """JSON of any value; what JSON has no type for as text, and what is no number as null."""
    return _json(value)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _fields(block: Block, name: str) -> list[Any]:
    """Values as a field's text; None stays, and is written as nothing."""
    values = block.column(name)
    return values if isinstance(block, ColumnBlock) else [_field(value) for value in values]


def _field(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | dict | list | tuple):
        return _json(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    return _plain(value)

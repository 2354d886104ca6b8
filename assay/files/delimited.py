"""CSV and TSV to blocks, by the standard library's parser: quoted line ends, blank lines, the numbers of lines.

A row of the wrong width, with a quote out of place or with bytes that are no UTF-8 is a problem of its own.
"""

import csv
from collections.abc import Iterator
from typing import Any

from assay.errors import RequestError
from assay.files.blocks import BLOCK_BYTES, BLOCK_ROWS, ColumnBlock, Opened, check_names
from assay.files.sources import MAX_LINE, is_unicode, name_of, open_stream, raw_lines, why_not_utf8


def open_delimited(source: str, delimiter: str, header: bool, quotes: bool) -> Opened:
    """Raises RequestError for a file without a header, or with one that names a column twice."""
    csv.field_size_limit(MAX_LINE)  # the process's: the module has no other
    stream = open_stream(source)
    lines = (line.decode("utf-8", "surrogateescape") for line in raw_lines(stream, source))
    rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True)
    try:
        first = next((row for row in rows if row), None)
        if first is None:
            raise RequestError(f"{name_of(source)} is empty: it has no header.")
        columns = tuple(first) if header else tuple(f"column_{i + 1}" for i in range(len(first)))
        check_names(source, columns)
    except csv.Error as error:
        stream.close()
        raise RequestError(f"{name_of(source)}, line 1: {error}.") from None
    except RequestError:
        stream.close()
        raise
    return Opened(
        columns, _blocks(source, rows, columns, None if header else first), stream.tell, stream.close, columns
    )


def _blocks(source: str, rows: Any, columns: tuple[str, ...], first: list[str] | None) -> Iterator[ColumnBlock]:
    """rows: a csv.reader behind the header; or behind the `first` row, where there is no header."""
    width = len(columns)
    nothing: list[Any] = [None] * width
    pending: list[list[Any]] = []
    lines: list[int] = []
    problems: dict[int, str] = {}
    size = 0
    if first is not None:
        pending, lines = [list(first)], [1]
    ended = False
    while not ended:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            row, problems[len(pending)] = nothing, _malformed(error, line, rows.line_num)
        if row is None:
            ended = True
        elif row:
            if len(row) != width:
                problems[len(pending)] = f"{len(row)} fields, and {width} columns"
                row = nothing
            elif row is not nothing:
                size += sum(map(len, row))
            pending.append(row)
            lines.append(line)
        if pending and (ended or len(pending) == BLOCK_ROWS or size >= BLOCK_BYTES):
            yield decoded(source, lines, [list(column) for column in zip(*pending, strict=True)], columns, problems)
            pending, lines, problems, size = [], [], {}, 0


def _malformed(error: csv.Error, first: int, last: int) -> str:
    if "unexpected end" in str(error):
        return "a quote that opens here is never closed"
    return f"{error}; quotes within a quoted field are doubled" + (f" (up to line {last})" if last > first else "")


def decoded(
    source: str, lines: list[int], values: list[list[Any]], columns: tuple[str, ...], problems: dict[int, str]
) -> ColumnBlock:
    """A block of columns decoded with surrogateescape; bytes that were no UTF-8 become problems of their rows."""
    for name, column in zip(columns, values, strict=True):
        if is_unicode("".join(filter(None, column))):
            continue
        for place, value in enumerate(column):
            if value is not None and not is_unicode(value):
                raw = value.encode("utf-8", "surrogateescape")
                problems.setdefault(place, f"{why_not_utf8(raw)} (in {name!r})")
                column[place] = raw.decode("utf-8", "replace")
    return ColumnBlock(source, lines, dict(zip(columns, values, strict=True)), problems)

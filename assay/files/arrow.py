"""Blocks and their scores to Parquet, by way of Arrow's stream format, to which rows can be added after any crash.

The columns of a Parquet input keep their types. Those of JSONL get one: whole numbers, numbers, booleans, texts; what
is nested or mixed becomes JSON in a text.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import RequestError
from assay.files.added import Added, Values
from assay.files.blocks import ArrowBlock, Block
from assay.files.readers import Reader
from assay.files.sources import name_of
from assay.files.writers import check_columns, plain_json

_GROUP_ROWS = 1 << 17
_GROUP_BYTES = 1 << 26


class ArrowWriter:
    """Each block is a whole stream of Arrow's: a schema and one batch."""

    def __init__(self, reader: Reader, added: Added) -> None:
        own = reader.schema if reader.schema is not None else _schema(reader)
        self._own = own
        self._json = {name for name in own.names if reader.schema is None and _is_json(reader, name)}
        fields = [pa.field(name, pa.string() if added.is_text(name) else pa.float32()) for name in added.names]
        self._schema = pa.schema([*own, *fields], metadata=own.metadata)

    def head(self) -> bytes:
        return self._stream([])

    def rows(self, block: Block, added: dict[str, Values], kept: Seq[int]) -> bytes:
        check_columns(block, tuple(self._own.names))
        arrays = [self._column(block, field) for field in self._own]
        arrays += [pa.array(values, self._schema.field(name).type) for name, values in added.items()]
        batch = pa.record_batch(arrays, schema=self._schema)
        if len(kept) < batch.num_rows:
            batch = batch.take(pa.array(kept, pa.int64()))
        return self._stream([batch])

    def _stream(self, batches: list[pa.RecordBatch]) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            for batch in batches:
                stream.write_batch(batch)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    def _column(self, block: Block, field: pa.Field) -> pa.Array:
        if isinstance(block, ArrowBlock):
            return block.batch.column(block.batch.schema.get_field_index(field.name))
        values = block.column(field.name)
        if field.name in self._json:
            values = [None if value is None else plain_json(value) for value in values]
        try:
            return _array(values, field.type)
        except (pa.ArrowException, OverflowError):
            raise self._misfit(block, field, values) from None

    def _misfit(self, block: Block, field: pa.Field, values: list[Any]) -> RequestError:
        for line, value in zip(block.lines, values, strict=True):
            try:
                _array([value], field.type)
            except (pa.ArrowException, OverflowError):
                return RequestError(
                    f"{name_of(block.source)}, line {line}: {field.name!r} is {str(value)[:60]!r}, and {field.type} in "
                    "the first rows. Write .jsonl."
                )
        return RequestError(f"{name_of(block.source)}: {field.name!r} does not fit {field.type}. Write .jsonl.")


def write_parquet(spool: Path, path: Path) -> None:
    """The streams that lie one after another in `spool`, as one Parquet file."""
    with pa.OSFile(str(spool)) as source:
        size = source.size()
        schema = pa.ipc.open_stream(source).schema
        source.seek(0)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for group in _groups(_batches(source, size)):
                writer.write_table(pa.Table.from_batches(group, schema).unify_dictionaries())


def _batches(source: pa.NativeFile, size: int) -> Iterator[pa.RecordBatch]:
    while source.tell() < size:
        yield from pa.ipc.open_stream(source)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Batches of a row group."""
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


_KINDS: tuple[tuple[Callable[[Any], bool], pa.DataType], ...] = (
    (lambda value: isinstance(value, bool), pa.bool_()),
    (lambda value: type(value) is int and abs(value) < 1 << 63, pa.int64()),
    (lambda value: type(value) is float or (type(value) is int and abs(value) <= 1 << 53), pa.float64()),
    (lambda value: isinstance(value, str), pa.string()),
)


def _kind(values: list[Any]) -> pa.DataType | None:
    """The type that holds all of them; None where only JSON does."""
    given = [value for value in values if value is not None]
    if not given:
        return pa.string()
    return next((kind for fits, kind in _KINDS if all(map(fits, given))), None)


def _first_values(reader: Reader, name: str) -> list[Any]:
    return [record.get(name) for record in reader.sample]


def _is_json(reader: Reader, name: str) -> bool:
    return reader.format == "jsonl" and _kind(_first_values(reader, name)) is None


def _schema(reader: Reader) -> pa.Schema:
    """Texts, but for JSONL, whose first rows say what they are."""
    kinds = [
        (_kind(_first_values(reader, name)) if reader.format == "jsonl" else None) or pa.string()
        for name in reader.columns
    ]
    return pa.schema([pa.field(name, kind) for name, kind in zip(reader.columns, kinds, strict=True)])


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # a lone surrogate, out of JSON, has no place in UTF-8
        return pa.array([value and value.encode("utf-8", "replace").decode() for value in values], kind)

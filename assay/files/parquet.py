"""Parquet to blocks, its types kept. Knows no other format."""

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import ConfigError, RequestError
from assay.files.blocks import BLOCK_BYTES, BLOCK_ROWS, ArrowBlock, Opened, check_names
from assay.files.sources import is_file, name_of


def open_parquet(source: str) -> Opened:
    """Raises RequestError for what is no Parquet, ConfigError for a pipe."""
    if not is_file(source):
        raise ConfigError(f"Parquet is read from its end, and {name_of(source)} is a pipe; write it to a file first.")
    try:
        file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)  # page by page: a row group may be huge
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"{source} cannot be read as Parquet: {error}") from error
    schema = file.schema_arrow
    try:
        check_names(source, tuple(schema.names))
    except RequestError:
        file.close()
        raise
    blocks = _Blocks(source, file)
    texts = tuple(field.name for field in schema if _is_text(field.type))
    return Opened(tuple(schema.names), iter(blocks), blocks.tell, file.close, texts, schema)


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


class _Blocks:
    """The blocks of a file, and how far they have come."""

    def __init__(self, source: str, file: pq.ParquetFile) -> None:
        self._source = source
        self._file = file
        self._rows = 0

    def tell(self) -> int:
        """As if every row had as many bytes."""
        total: int = self._file.metadata.num_rows
        return os.path.getsize(self._source) * self._rows // max(1, total)

    def __iter__(self) -> Iterator[ArrowBlock]:
        rows = _block_rows(self._file.metadata)
        try:
            for batch in self._file.iter_batches(batch_size=rows):
                if batch.num_rows:
                    first = self._rows + 1
                    self._rows += batch.num_rows
                    yield ArrowBlock(self._source, list(range(first, self._rows + 1)), batch)
        except (pa.ArrowException, OSError) as error:
            raise RequestError(f"{self._source} cannot be read after row {self._rows}: {error}") from error


def _block_rows(metadata: pq.FileMetaData) -> int:
    size: int = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    rows: int = metadata.num_rows
    bytes_per_row = max(1, size // max(1, rows))
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // bytes_per_row))

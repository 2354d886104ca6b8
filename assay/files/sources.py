"""Where rows come from: paths and globs, what format a name says, and a stream of bytes out of .gz, .zst or stdin."""

import glob
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast, get_args

import pyarrow as pa

from assay.errors import ConfigError, RequestError
from assay.files.settings import Format

FORMATS: tuple[Format, ...] = get_args(Format)
STDIO = "-"
ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BUFFER = 1 << 20
MAX_LINE = 1 << 26  # bytes; a longer line is a file of another kind, or a quote that nobody closed


def expand(paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Files for paths and globs, a glob's in the order of their names. Raises ConfigError for what is not there."""
    found: list[str] = []
    for path in [os.fspath(path) for path in paths]:
        if path == STDIO or (os.path.exists(path) and not os.path.isdir(path)):
            found.append(path)
        elif os.path.isdir(path):
            raise ConfigError(f"{path} is a folder; name its files, such as '{os.path.join(path, '*.parquet')}'.")
        elif matches := sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name)):
            found += matches
        else:
            raise ConfigError(f"There is no file {path}.")
    if not found:
        raise ConfigError("No file is named; give at least one, or - for stdin.")
    if len(found) > 1 and STDIO in found:
        raise ConfigError("stdin (-) cannot be read together with files.")
    return tuple(found)


def split_name(path: str) -> tuple[Format | None, str | None]:
    """(format, codec) that a file's name says: `reviews.csv.gz` → csv, gzip."""
    stem, ending = os.path.splitext(path)
    codec = CODECS.get(ending.lower())
    if codec is not None:
        ending = os.path.splitext(stem)[1]
    return ENDINGS.get(ending.lower()), codec


def format_of(paths: Sequence[str], asked: str | None) -> Format:
    """What was asked for, or what all names say. Raises ConfigError."""
    if asked is not None:
        if asked not in FORMATS:
            raise ConfigError(f"format is {asked!r}; it must be one of {', '.join(FORMATS)}.")
        return asked
    said: dict[Format, str] = {}
    for path in paths:
        form = split_name(path)[0]
        if form is None:
            raise ConfigError(
                f"The name of {name_of(path)} says no format; say it with --input-format: {', '.join(FORMATS)}."
            )
        said.setdefault(form, path)
    if len(said) > 1:
        raise ConfigError(f"{' and '.join(said.values())} are of different formats; classify each kind alone.")
    return next(iter(said))


def name_of(path: str) -> str:
    """What messages call it."""
    return "stdin" if path == STDIO else path


def is_file(path: str) -> bool:
    """Whether it can be opened twice: neither stdin nor a pipe."""
    return path != STDIO and stat.S_ISREG(os.stat(path).st_mode)


def file_size(path: str) -> int:
    """Bytes on the disk; 0 of a pipe."""
    return os.path.getsize(path) if is_file(path) else 0


@dataclass(frozen=True, slots=True)
class Stream:
    """A file's bytes, decompressed. tell: how many of the file's own bytes have been read."""

    bytes: io.BufferedReader
    tell: Callable[[], int]

    def close(self) -> None:
        self.bytes.close()


def open_stream(path: str) -> Stream:
    """A file, or stdin, decompressed by what its first bytes say. Raises OSError."""
    raw = sys.stdin.buffer if path == STDIO else io.FileIO(path)
    plain = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER)
    tell = plain.tell if is_file(path) else int  # a pipe does not know
    head = plain.peek(4)[:4]
    codec = next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
    if codec is None:
        if head and split_name(path)[1] is not None:
            plain.close()
            raise RequestError(f"{path} is not compressed, as its name says; rename it.")
        return Stream(plain, tell)
    return Stream(io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), codec), _BUFFER), tell)


def raw_lines(stream: Stream, source: str) -> Iterator[bytes]:
    """A file's lines with their endings; without a byte order mark. Raises RequestError for what holds no lines."""
    try:
        first = stream.bytes.readline(MAX_LINE)
        if first.startswith(_UTF16):
            raise RequestError(f"{name_of(source)} is UTF-16; save it as UTF-8.")
        if first:
            yield _checked(first.removeprefix(b"\xef\xbb\xbf"), source)
        for line in iter(partial(stream.bytes.readline, MAX_LINE), b""):
            yield line if len(line) < MAX_LINE else _checked(line, source)
    except (OSError, EOFError) as error:
        raise RequestError(f"{name_of(source)} cannot be read on: {error}") from error


def _checked(line: bytes, source: str) -> bytes:
    if len(line) >= MAX_LINE and not line.endswith(b"\n"):
        raise RequestError(
            f"{name_of(source)} has a line of more than {MAX_LINE >> 20} MiB ({line[:40]!r} …): no rows of text."
        )
    return line


def is_unicode(text: str) -> bool:
    """Whether it holds no surrogate, which is what bytes that are no UTF-8 were decoded to."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def why_not_utf8(raw: bytes) -> str:
    """What is wrong with bytes that are no UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1}, 0x{raw[error.start]:02x}, is no UTF-8"
    return ""

"""JSONL and plain text to blocks: a row a line. Blank lines are no rows. Knows no columns but those of the objects."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from assay.errors import RequestError
from assay.files.blocks import BLOCK_BYTES, BLOCK_ROWS, Block, Opened, RecordBlock
from assay.files.delimited import decoded
from assay.files.sources import Stream, name_of, open_stream, raw_lines, why_not_utf8


def open_text(source: str) -> Opened:
    """One column, `text`: each line as it is, without its ending."""
    stream = open_stream(source)
    return Opened(("text",), _text_blocks(source, stream), stream.tell, stream.close, ("text",))


def open_jsonl(source: str) -> Opened:
    """columns: the keys of the first block's objects, in the order in which they come; of an empty file none. Raises
    RequestError."""
    stream = open_stream(source)
    try:
        blocks = _jsonl_blocks(source, stream)
        first = next(blocks, None)
    except RequestError:
        stream.close()
        raise
    if first is None:
        return Opened((), iter(()), stream.tell, stream.close, ())
    columns = tuple(dict.fromkeys(key for record in first.objects for key in record))
    if not columns and 0 in first.problems:
        stream.close()
        raise RequestError(f"{name_of(source)} has no columns. Line {first.lines[0]}: {first.problems[0]}.")
    texts = tuple(name for name in columns if any(isinstance(record.get(name), str) for record in first.objects))

    def all_blocks() -> Iterator[Block]:
        yield first
        yield from blocks

    return Opened(columns, all_blocks(), stream.tell, stream.close, texts, sample=first.objects)


def _numbered(source: str, stream: Stream) -> Iterator[list[tuple[int, bytes]]]:
    """Lines that are not blank, with their numbers, a block's worth at a time."""
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for number, raw in enumerate(raw_lines(stream, source), 1):
        if not raw or raw.isspace():
            continue
        chunk.append((number, raw))
        size += len(raw)
        if len(chunk) == BLOCK_ROWS or size >= BLOCK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _text_blocks(source: str, stream: Stream) -> Iterator[Block]:
    for chunk in _numbered(source, stream):
        texts = [raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape") for _, raw in chunk]
        yield decoded(source, [number for number, _ in chunk], [texts], ("text",), {})


def _jsonl_blocks(source: str, stream: Stream) -> Iterator[RecordBlock]:
    for chunk in _numbered(source, stream):
        parsed = [_parse_object(raw) for _, raw in chunk]
        problems = {place: problem for place, (_, problem) in enumerate(parsed) if problem}
        yield RecordBlock(source, [number for number, _ in chunk], [record for record, _ in parsed], problems)


def _parse_object(raw: bytes) -> tuple[dict[str, Any], str]:
    """(the object, "") or ({}, what is wrong)."""
    try:
        value = json.loads(raw.decode(), parse_constant=_no_number)
    except UnicodeDecodeError:
        return {}, why_not_utf8(raw)
    except (ValueError, RecursionError) as error:
        return {}, f"no JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"a JSON value of type {type(value).__name__}, where an object is needed"
    return value, ""


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON's")

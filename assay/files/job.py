"""A file in, a file out: read, tokenize, score, write, block by block. Knows no terminal.

A thread reads and tokenizes ahead while the caller's scores and writes, so that neither waits for the other.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from assay.errors import AssayError, RequestError
from assay.files.added import Added
from assay.files.arrow import write_parquet
from assay.files.blocks import Block
from assay.files.fingerprint import differences, input_fingerprint
from assay.files.inputs import TextColumns
from assay.files.readers import Reader
from assay.files.scorer import Answer, Encoded, Scorer
from assay.files.settings import OnError
from assay.files.sources import name_of
from assay.files.unfinished import State, Unfinished
from assay.files.writers import Writer
from assay.sequence import Prediction

_AHEAD = 2  # blocks that are read and tokenized while one is scored
_COMMIT_SECONDS = 1.0


class Watcher(Protocol):
    """Who is told how it goes."""

    def scored(self, num_tokens: int) -> None:
        """A batch is done."""

    def bad_row(self, report: str) -> None:
        """A row has no score, and the job goes on."""

    def written(self, state: State, bytes_read: int) -> None:
        """A block is written. bytes_read: of the input's files, up to its end."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with the rows. codec: gzip or zstd, where the output is compressed."""

    reader: Reader
    columns: TextColumns
    scorer: Scorer
    added: Added
    writer: Writer
    codec: str | None
    on_error: OnError

    def pieces(self, state: State, watcher: Watcher) -> Iterator[bytes]:
        """The output from where `state` is, a block's bytes at a time; `state` is that block's when they come.

        Raises RequestError at a row without a score, where the job is to stop there.
        """
        if not state.size:
            yield self._packed(self.writer.head())
        for ready in self._ahead(state.blocks):
            answers = self.scorer.score(ready.encoded, watcher.scored)
            predictions = [answer if isinstance(answer, Prediction) else None for answer in answers]
            errors = self._errors(ready, answers)
            if errors:
                self._report(ready.block, errors, watcher)
            kept = [i for i in range(len(answers)) if i not in errors or self.on_error == "null"]
            added = self.added.columns(predictions, [errors.get(i) for i in range(len(answers))])
            piece = self._packed(self.writer.rows(ready.block, added, kept))
            state.blocks += 1
            state.rows += len(answers)
            state.errors += len(errors)
            state.tokens += ready.encoded.num_tokens
            for label, count in Counter(p.label for p in predictions if p is not None).items():
                state.labels[label] = state.labels.get(label, 0) + count
            yield piece
            watcher.written(state, ready.bytes_read)

    def _ahead(self, skipped: int) -> Iterator["_Ready"]:
        """Blocks, tokenized on a thread before they are asked for."""
        pending: deque[Future[_Ready | None]] = deque()
        with (
            closing(self.reader.blocks()) as blocks,
            ThreadPoolExecutor(1, "assay-files") as thread,  # closed first: it uses the blocks
        ):
            wanted = islice(blocks, skipped, None)
            try:
                pending.extend(thread.submit(self._prepare, wanted) for _ in range(_AHEAD))
                while (ready := pending.popleft().result()) is not None:
                    pending.append(thread.submit(self._prepare, wanted))
                    yield ready
            finally:
                for future in pending:
                    future.cancel()

    def _prepare(self, blocks: Iterator[Block]) -> "_Ready | None":
        block = next(blocks, None)
        if block is None:
            return None
        prompts, problems = self.columns.prompts(block)
        return _Ready(block, self.scorer.encode(prompts), problems, self.reader.bytes_read)

    def _errors(self, ready: "_Ready", answers: list[Answer | None]) -> dict[int, str]:
        """Why rows have no score, by their places."""
        errors = dict(ready.problems)
        for place, answer in enumerate(answers):
            if isinstance(answer, AssayError):
                errors[place] = answer.message
        return dict(sorted(errors.items()))

    def _report(self, block: Block, errors: dict[int, str], watcher: Watcher) -> None:
        row_ids = block.column(self.columns.row_id) if self.columns.row_id is not None else None
        for place, error in errors.items():
            row_id = None if row_ids is None else row_ids[place]
            called = "" if row_id is None else f" ({self.columns.row_id} {str(row_id)[:60]!r})"
            report = f"{name_of(block.source)}, line {block.lines[place]}{called}: {error.rstrip('.')}."
            if self.on_error == "stop":
                raise RequestError(f"{report} --on-error skip leaves such rows out, --on-error null keeps them.")
            watcher.bad_row(report)

    def _packed(self, piece: bytes) -> bytes:
        """A whole member of .gz, a whole frame of .zst."""
        if self.codec is None or not piece:
            return piece
        packed: bytes = pa.compress(piece, codec=self.codec, asbytes=True)
        return packed


@dataclass(frozen=True, slots=True)
class _Ready:
    """A block that can be scored. problems: rows that cannot. bytes_read: of the input, up to its end."""

    block: Block
    encoded: Encoded
    problems: dict[int, str]
    bytes_read: int


def run_to_stdout(job: Job, watcher: Watcher) -> State:
    """Nothing can be continued here."""
    state = State()
    for piece in job.pieces(state, watcher):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return state


def run_to_file(job: Job, unfinished: Unfinished, fingerprint: dict[str, Any], parquet: bool, watcher: Watcher) -> None:
    """Begin or continue, to the end. Raises RequestError where the input changes meanwhile."""
    if unfinished.published:
        unfinished.remove()
        return
    state = unfinished.state
    if not state.done:
        unfinished.commit()
        committed = time.monotonic()
        for piece in job.pieces(state, watcher):
            unfinished.append(piece)
            if time.monotonic() - committed >= _COMMIT_SECONDS:
                unfinished.commit()
                committed = time.monotonic()
        _check_unchanged(job.reader, fingerprint)
        state.done = True
        unfinished.commit()
    finished = unfinished.data
    if parquet:
        finished = unfinished.folder / "table"
        write_parquet(unfinished.data, finished)
    unfinished.publish(finished)


def _check_unchanged(reader: Reader, fingerprint: dict[str, Any]) -> None:
    pipes = {name for name, facts in fingerprint["input"].items() if facts[0] == "pipe"}
    now = {name: facts for name, facts in input_fingerprint(reader.sources).items() if name not in pipes}
    before = {name: facts for name, facts in fingerprint["input"].items() if name not in pipes}
    changed = differences({"input": before}, {"input": now})
    if changed:
        raise RequestError(f"While it was read, {changed[0]}; start anew with --overwrite.")

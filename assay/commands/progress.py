"""How long work is going, on stderr: a bar on a terminal, nothing elsewhere; and what a job over files came to."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from assay.files.unfinished import State

_REPORTS = 20
_LABELS = 20


class JobProgress:
    """A watcher of a job. num_bytes: of its input, 0 where that is not known."""

    def __init__(self, num_bytes: int, start: "State") -> None:
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._rows_before, self._tokens = start.rows, 0
        self._rows = start.rows
        self._reports = 0
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]:,} rows, {task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal, transient=True)
        self._task = self._bar.add_task("", total=num_bytes or None, rows=start.rows, speed="")

    def scored(self, num_tokens: int) -> None:
        self._tokens += num_tokens
        self._bar.update(self._task, speed=self.speed())

    def bad_row(self, report: str) -> None:
        self._reports += 1
        if self._reports <= _REPORTS:
            self._console.print(Text(report), soft_wrap=True)

    def written(self, state: "State", bytes_read: int) -> None:
        self._rows = state.rows
        self._bar.update(self._task, completed=bytes_read, rows=state.rows, speed=self.speed())

    def speed(self) -> str:
        """Of this run, without what an earlier one did."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{(self._rows - self._rows_before) / seconds:,.0f} rows/s, {self._tokens / seconds:,.0f} tokens/s"

    def summarize(self, state: "State", output: str) -> None:
        """Rows, tokens, labels and errors of the whole job."""
        lines = [f"{state.rows:,} rows, {state.tokens:,} tokens, {state.errors:,} errors → {output}", self.speed()]
        if self._reports > _REPORTS:
            lines.insert(0, f"… and {self._reports - _REPORTS:,} more rows without a score.")
        counted = sorted(state.labels.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"{count:>12,}  {label}" for label, count in counted[:_LABELS]]
        if len(counted) > _LABELS:
            lines.append(
                f"{sum(count for _, count in counted[_LABELS:]):>12,}  in {len(counted) - _LABELS} more labels"
            )
        print(*lines, sep="\n", file=sys.stderr)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()


@contextmanager
def model_bars() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A bar for each model that scores prompts: called with its name and how many, then with how many more are done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:

        def watch(name: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(name, total=total)
            return lambda done: bar.advance(task, done)

        yield watch

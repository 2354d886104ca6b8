"""Labels as people's files have them → what is true of each row, as arrays. Knows no file and no score.

Every reading is told in words (`Truth.recognised`): a format that was guessed wrongly must be seen, not averaged in.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from assay.config import Activation
from assay.errors import RequestError
from assay.evaluation.cells import Cell, LabelNames, no_or_yes, number, several

Task = Literal["single", "multi", "regression", "pairs"]

# What an activation says of the labels: softmax, they exclude each other; sigmoid, they do not; none, they are numbers.
TASKS: dict[Activation, Task] = {"softmax": "single", "sigmoid": "multi", "none": "regression"}
_SHOWN = 12  # unknown labels that a message names


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of the rows that can be judged.

    targets: single: [rows] int, the label's index; multi: [rows, judged] bool; regression: [rows, judged] float.
    judged: indices of the model's labels that the data speaks of; kept: places of the rows that have a truth.
    recognised: how the labels were read. unknown: labels that the model does not have, with how often they came.
    """

    task: Task
    targets: NDArray[Any]
    judged: tuple[int, ...]
    kept: NDArray[np.int64]
    recognised: str
    unknown: Mapping[str, int]


def read_column(
    cells: Sequence[Cell],
    task: Task,
    labels: Sequence[str],
    ignore_unknown: bool = False,
    skip_missing: bool = False,
) -> Truth:
    """One column with the label, the labels, or the number of each row.

    skip_missing: leave out rows without one; an empty field says "none of the labels" where a row may have several.
    Raises RequestError that names the row, or the labels that the model does not have together with those it has.
    """
    if skip_missing:
        nothing: set[Any] = {None} if task == "multi" and len(labels) > 1 else {None, ""}
        present = [
            row for row, cell in enumerate(cells) if not isinstance(cell.value, Hashable) or cell.value not in nothing
        ]
        truth = read_column([cells[row] for row in present], task, labels, ignore_unknown)
        return replace(truth, kept=np.array(present, dtype=np.int64)[truth.kept])
    if task == "regression":
        return _numbers(cells, labels)
    if len(labels) == 1:
        return _one_label(cells, labels[0])
    items, layout = several(cells, labels)
    if layout == "multi-hot":
        flags = np.array([[item == 1 for item in row] for row in items], dtype=bool)
        return _from_flags(flags, task, labels, range(len(labels)), cells, "lists of 0 and 1, one for each label")
    names = LabelNames.of(items, labels)
    if names.unknown and not ignore_unknown:
        raise _unknown(names, cells, labels)
    found = [[place for item in row if (place := names.index(item)) is not None] for row in items]
    told = names.how if layout == "a label a row" else f"{layout}, {names.how}"
    if task == "single":
        _check_exclusive(cells, items)
    kept = np.array([row for row, places in enumerate(found) if places or not items[row]], dtype=np.int64)
    judged = tuple(range(len(labels)))
    if task == "single":
        targets = np.array([found[row][0] for row in kept], dtype=np.int64)
    else:
        targets = np.zeros((len(kept), len(labels)), dtype=bool)
        for place, row in enumerate(kept):
            targets[place, found[row]] = True
    return Truth(task, targets, judged, kept, told, names.unknown)


def _numbers(cells: Sequence[Cell], labels: Sequence[str]) -> Truth:
    if len(labels) > 1:
        raise RequestError(
            f"The model gives {len(labels)} scores ({', '.join(labels)}); give a column for each, named so."
        )
    values = np.array([[number(cell)] for cell in cells], dtype=np.float64).reshape(-1, 1)
    return Truth("regression", values, (0,), np.arange(len(cells)), "numbers", {})


def _check_exclusive(cells: Sequence[Cell], items: list[list[Any]]) -> None:
    for cell, row in zip(cells, items, strict=True):
        if not row:
            raise RequestError(f"{cell.place} has no label; give it one, or leave it out with --on-error skip.")
        if len(row) > 1:
            raise RequestError(f"{cell.place} has {len(row)} labels, {cell.value!r}. {_EXCLUSIVE}")


def read_columns(columns: Mapping[str, Sequence[Cell]], task: Task, labels: Sequence[str]) -> Truth:
    """One column for each label: 0 or 1, or numbers for regression. Labels without a column are not judged."""
    strangers = [name for name in columns if name not in labels]
    if strangers:
        raise RequestError(
            f"Columns {_listed(strangers)} are no labels of the model. Its labels are: {', '.join(labels)}."
        )
    judged = tuple(place for place, label in enumerate(labels) if label in columns)
    some = [columns[labels[place]] for place in judged]
    told = "one column for each label"
    if len(judged) < len(labels):
        told = f"a column for {len(judged)} of the model's {len(labels)} labels; the others are not judged"
    if task == "regression":
        values = np.array([[number(cell) for cell in column] for column in some], dtype=np.float64).T
        return Truth("regression", values, judged, np.arange(len(values)), told, {})
    flags = np.array([[no_or_yes(cell) for cell in column] for column in some], dtype=bool).T
    return _from_flags(flags, task, labels, judged, some[0], told)


def _one_label(cells: Sequence[Cell], label: str) -> Truth:
    """A model with one sigmoid: each row has its label or not."""
    flags = np.array([[no_or_yes(cell, label)] for cell in cells], dtype=bool)
    told = f"yes or no (1 or 0): whether a row has the model's one label, {label}"
    return Truth("multi", flags, (0,), np.arange(len(cells)), told, {})


def _from_flags(
    flags: NDArray[np.bool_],
    task: Task,
    labels: Sequence[str],
    judged: Sequence[int],
    cells: Sequence[Cell],
    told: str,
) -> Truth:
    """flags [rows, judged]."""
    kept = np.arange(len(flags))
    if task == "multi":
        return Truth("multi", flags, tuple(judged), kept, told, {})
    if len(judged) < len(labels):
        raise RequestError(
            f"The model's labels exclude each other, and the data has columns for {len(judged)} of {len(labels)} only. "
            "Give all of them, or one column with the label's name."
        )
    for cell, count in zip(cells, flags.sum(axis=1), strict=True):
        if count != 1:
            raise RequestError(f"{cell.place}: {count} labels are 1. {_EXCLUSIVE}")
    return Truth("single", flags.argmax(axis=1), tuple(judged), kept, told, {})


_EXCLUSIVE = (
    "The model's labels exclude each other (softmax), so a row has exactly one; for labels that do not, take "
    "--activation sigmoid."
)


def _unknown(names: LabelNames, cells: Sequence[Cell], labels: Sequence[str]) -> RequestError:
    return RequestError(
        f"{_listed(list(names.unknown))} in the data {'is no label' if len(names.unknown) == 1 else 'are no labels'} "
        f"of the model (first in {cells[names.first_unknown].place}). Its labels are: {_listed(list(labels), 80)}. "
        "Correct the data, or leave such labels out with --ignore-unknown-labels."
    )


def _listed(names: list[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more

"""One cell of a label column, and what people write into it: a name, an index, a number, yes or no, several labels.

Knows neither files nor arrays.
"""

import ast
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay.errors import RequestError

_YES = {"1", "true", "yes", "y", "t"}
_NO = {"0", "false", "no", "n", "f", ""}
_SEPARATORS = ("|", ",", ";")


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and where it stands: `reviews.csv, line 7`."""

    place: str
    value: Any


def number(cell: Cell) -> float:
    """Raises RequestError for what is no finite number."""
    try:
        value = float(cell.value)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(f"{cell.place}: the label is {cell.value!r}; the model gives numbers, so it must be one.")
    return value


def no_or_yes(cell: Cell, label: str | None = None) -> bool:
    """0 or 1, in the words that people have for it; the label's own name is a yes. Raises RequestError."""
    word = str(int(cell.value) if _whole(cell.value) else cell.value).strip().lower()
    if word in _YES or (label is not None and word == label.lower()):
        return True
    if cell.value is not None and word in _NO:
        return False
    raise RequestError(f"{cell.place}: the label is {cell.value!r}; it must be 0 or 1 (or false, true, no, yes).")


def several(cells: Sequence[Cell], labels: Sequence[str]) -> tuple[list[list[Any]], str]:
    """The items of each cell, and how they were found; one way for the whole column.

    A string in brackets is a list. Others are split by the separator, if any, with which most items are labels.
    Layout `multi-hot`: every list is of 0 and 1, one for each label.
    """
    known = {label.casefold() for label in labels}
    strings = [value for cell in cells if isinstance(value := _list_of(cell), str)]
    separator = None if all(text.strip().casefold() in known for text in strings) else _separator(strings, labels)
    items = [_items(_list_of(cell), separator, cell) for cell in cells]
    listed = sum(isinstance(_list_of(cell), list) for cell in cells)
    if listed == len(cells) and _multi_hot(items, len(labels)):
        return items, "multi-hot"
    if separator is not None:
        return items, f"labels separated by {separator!r}"
    return items, "lists of labels" if listed else "a label a row"


def _list_of(cell: Cell) -> Any:
    """A list where the cell is one, or is a string that spells one."""
    value = cell.value.tolist() if hasattr(cell.value, "tolist") else cell.value
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        try:
            value = json.loads(value)
        except ValueError:
            try:
                value = ast.literal_eval(value.strip())  # as pandas writes lists into CSV: ['a', 'b']
            except (ValueError, SyntaxError):
                raise RequestError(f"{cell.place}: {value[:80]!r} is no list; write it as JSON.") from None
    return list(value) if isinstance(value, tuple | list | set) else value


def _items(value: Any, separator: str | None, cell: Cell) -> list[Any]:
    if isinstance(value, list):
        if not all(isinstance(item, str | int | float) for item in value):
            raise RequestError(f"{cell.place}: {cell.value!r} is no list of labels.")
        return value
    if value is None:
        raise RequestError(f"{cell.place} has no label; give it one, or leave it out with --on-error skip.")
    if not isinstance(value, str):
        return [value]
    parts = value.split(separator) if separator else [value]
    return [part.strip() for part in parts if part.strip()]


def _separator(strings: Sequence[str], labels: Sequence[str]) -> str | None:
    """The one with which most items are labels; of equals what leaves fewest unknown, and none before any."""

    def merit(separator: str | None) -> tuple[int, int]:
        parts = [part for text in strings for part in (text.split(separator) if separator else [text])]
        items = [[part.strip()] for part in parts if part.strip()]
        unknown = sum(LabelNames.of(items, labels).unknown.values())
        return len(items) - unknown, -unknown

    used = [None, *(mark for mark in _SEPARATORS if any(mark in text for text in strings))]
    return max(used, key=merit)


def _multi_hot(items: list[list[Any]], count: int) -> bool:
    """Lists of indices repeat none, and are not all as long as there are labels."""
    fits = all(len(row) == count and all(item in (0, 1) for item in row) for row in items)
    return fits and any(len(set(row)) < len(row) for row in items)


def _whole(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value == int(value)


@dataclass(frozen=True, slots=True)
class LabelNames:
    """How a column writes the model's labels.

    table: as written → index. how: in words. unknown: as written → how often. first_unknown: the first row with one.
    """

    table: Mapping[str, int]
    fold: bool
    how: str
    unknown: Mapping[str, int]
    first_unknown: int

    @classmethod
    def of(cls, items: Sequence[Sequence[Any]], labels: Sequence[str]) -> "LabelNames":
        """Names as they are; else names whatever their case; else indices; else, of these, what knows most items."""
        exact = {label: place for place, label in enumerate(labels)}
        folded = {label.casefold(): place for place, label in enumerate(labels)}
        indices = {str(place): place for place in range(len(labels))}
        ways = [cls(exact, False, "by name", {}, 0), cls(indices, False, f"by index, 0 to {len(labels) - 1}", {}, 0)]
        if len(folded) == len(labels):
            ways.insert(1, cls(folded, True, "by name, upper and lower case alike", {}, 0))
        return min((way._counted(items) for way in ways), key=lambda way: sum(way.unknown.values()))

    def _counted(self, items: Sequence[Sequence[Any]]) -> "LabelNames":
        strangers = [(row, str(item)) for row, some in enumerate(items) for item in some if self.index(item) is None]
        unknown = dict(Counter(word for _, word in strangers).most_common())
        return replace(self, unknown=unknown, first_unknown=strangers[0][0] if strangers else 0)

    def index(self, item: Any) -> int | None:
        """1.0 is 1, where it is nothing else: tables with gaps turn whole numbers into fractions."""
        raw = str(item).strip()
        whole = str(int(item)) if _whole(item) else raw.removesuffix(".0")
        for word in (raw, whole):
            if (place := self.table.get(word.casefold() if self.fold else word)) is not None:
                return place
        return None

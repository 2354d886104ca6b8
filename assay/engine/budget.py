"""What one rendering of a chat template may spend, and the operators of its expressions: each pays before it runs.

Knows neither the syntax of templates nor their filters. A step stands for about a microsecond of a template's work, a
character for one that is read or written; both are counted, never timed, so that a template ends the same everywhere.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.utils import Namespace

MAX_NUMBER = 2**60  # Above 2**61 whole numbers can be chosen to collide in a dict, and arithmetic is no single step.
MAX_DEPTH = 64  # of macros and recursive loops; Python's own limit would depend on who called us
_ESCAPED = 6  # characters that one becomes in HTML, at most

_SCALARS = frozenset({int, float, bool, type(None)})
_VIEWS: Any = (type({}.keys()), type({}.values()), type({}.items()))
_SEQUENCES: Any = (list, tuple, set, frozenset, *_VIEWS)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
# A width or precision of four digits, or one taken from the arguments. The second is for what follows `%(name)`, whose
# name may hold any parentheses.
_WIDE = re.compile(r"%[-+ #0]*(?:\*|\d{4}|\d{0,3}\.(?:\*|\d{4}))")
_WIDE_AFTER_NAME = re.compile(r"\)[-+ #0]*(?:\*|\d{4}|\d{0,3}\.(?:\*|\d{4}))")


class BudgetError(SecurityError):
    """A template spent more than it may."""


class Budget:
    """Steps and characters that are left, and how deep the template's calls are nested."""

    __slots__ = ("_limits", "characters", "depth", "steps")

    def __init__(self, steps: int, characters: int) -> None:
        self._limits = steps, characters
        self.steps = steps
        self.characters = characters
        self.depth = 0

    def step(self, count: int = 1) -> bool:
        """Always true, so that it can stand in a condition. Raises BudgetError."""
        self.steps -= count
        if self.steps < 0:
            raise BudgetError(f"it takes more than the {self._limits[0]} steps that it may for these messages")
        return True

    def read(self, count: int) -> None:
        """Pay for characters that are looked at, copied or made. Raises BudgetError."""
        self.characters -= count
        if self.characters < 0:
            raise BudgetError(f"it handles more than the {self._limits[1]} characters that it may for these messages")

    def walk(self, value: Any) -> None:
        """Pay for a value with all that is in it, as often as it is in it: lists can share lists 2**60 times over."""
        if type(value) is str:
            return self.read(len(value))
        if type(value) in _SCALARS:
            return None
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                self.read(len(item))
                continue
            if isinstance(item, Namespace):
                item = item._Namespace__attrs
            if isinstance(item, Mapping):
                self.step(2 * len(item) + 1)
                waiting.extend(item.keys())
                waiting.extend(item.values())
            elif isinstance(item, _SEQUENCES):
                self.step(len(item) + 1)
                waiting.extend(item)
            elif isinstance(item, range):
                self.step(len(item))
        return None

    def iterate(self, value: Iterable[Any]) -> Iterator[Any]:
        for item in value:
            self.step()
            yield item

    def made(self, value: Any) -> Any:
        """Pay for what a filter or a method has made; what is lazy is paid for item by item."""
        if type(value) is str:
            self.read(len(value))
        elif type(value) is list:
            self.step(len(value))
        elif type(value) is int:
            return self.number(value)
        elif type(value) is GeneratorType:
            return self.iterate(value)
        return value

    def number(self, value: Any) -> Any:
        if isinstance(value, int) and not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise BudgetError("it computes with whole numbers beyond 2**60")
        return value

    def key(self, value: Any) -> Any:
        """A dict's key: a tuple's hash, unlike a text's, is computed anew each time, through all that is in it."""
        if isinstance(value, str | float | Undefined | None):
            return value
        if isinstance(value, int):
            return self.number(value)
        raise TypeError(f"a key must be a text or a number, not {type(value).__name__}")

    def forbid(self, tag: str) -> NoReturn:
        raise SecurityError(f"a chat template stands alone; {{% {tag} %}} has nothing to refer to")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BudgetError(f"its macros or loops call each other more than {MAX_DEPTH} deep")

    def leave(self) -> None:
        self.depth -= 1

    def text(self, value: Any) -> str:
        """`str(value)`."""
        if type(value) is str:
            return value
        if type(value) in _SCALARS:
            return str(value)
        self.walk(value)
        text = str(value)
        self.read(len(text))
        return text

    def concat(self, pieces: Iterable[str]) -> str:
        """What a macro, a block of `set` or the whole template has written."""
        pieces = list(pieces)
        self.read(sum(map(len, pieces)))
        return "".join(pieces)

    def join(self, *values: Any) -> str:
        """`a ~ b ~ …`."""
        return self.concat([self.text(value) for value in values])

    def add(self, *values: Any) -> Any:
        """`a + b + …`."""
        total = 0
        for value in values:
            if type(value) is not str:
                return self._add_others(values)
            total += len(value)
        self.characters -= total
        if self.characters < 0:
            self.read(0)  # says so
        return "".join(values)

    def _add_others(self, values: tuple[Any, ...]) -> Any:
        result = values[0]
        for value in values[1:]:
            if isinstance(result, str) and isinstance(value, str):
                exact = type(result) is type(value) is str
                self.read((len(result) + len(value)) * (1 if exact else _ESCAPED))
            elif isinstance(result, list | tuple) and isinstance(value, list | tuple):
                self.step(len(result) + len(value))
            result = self.number(result + value)
        return result

    def operate(self, name: str, left: Any, right: Any) -> Any:
        """The other operators between two values."""
        if name == "%" and isinstance(left, str):
            return self.percent(left, right)
        if name == "*":
            self._pay_repetition(left, right)
            self._pay_repetition(right, left)
        elif isinstance(left, int) and isinstance(right, int):
            if name == "**" and right * left.bit_length() > 128:
                self._refuse_power()
        elif type(left) not in _SCALARS:
            self.walk(left)
            self.walk(right)
        return self.number(_OPERATORS[name](left, right))

    def _pay_repetition(self, value: Any, count: Any) -> None:
        if not isinstance(count, int) or count < 1:
            return
        if isinstance(value, str):
            self.read(len(value) * count)
        elif isinstance(value, list | tuple):
            self.step(len(value) * count)

    def _refuse_power(self) -> NoReturn:
        raise BudgetError("it computes with whole numbers beyond 2**60")

    def percent(self, pattern: str, values: Any) -> str:
        """`pattern % values`."""
        if _WIDE.search(pattern) or ("%(" in pattern and _WIDE_AFTER_NAME.search(pattern)):
            raise BudgetError("it formats a field wider than 999 characters, or as wide as an argument says")
        steps, characters = self.steps, self.characters
        self.walk(values)
        fields = pattern.count("%")  # each may print all the values
        exact = 1 if type(pattern) is str else _ESCAPED
        self.step(fields * (1 + steps - self.steps))
        self.read(fields * exact * (characters - self.characters) + len(pattern))
        text: str = pattern % values
        self.read(len(text))
        return text

    def compare(self, name: str, left: Any, right: Any) -> bool:
        """`left == right` and its like: both are walked in step, so that one of them is the measure."""
        if type(left) is str:
            if isinstance(right, str):
                self.read(min(len(left), len(right)))
        elif not (type(left) in _SCALARS or type(right) in _SCALARS or type(right) is str):
            self.walk(left)
        return _COMPARISONS[name](left, right)

    def seen(self, value: Any) -> Any:
        """A value that is about to be compared more than once."""
        self.walk(value)
        return value

    def within(self, left: Any, right: Any) -> bool:
        """`left in right`."""
        if isinstance(right, str):
            if isinstance(left, str):
                self.search(right, left)
            return left in right
        if isinstance(right, dict | _VIEWS[0]):
            return self.key(left) in right
        if isinstance(right, _SEQUENCES) and (type(left) is str or type(left) in _SCALARS):
            self.step(len(right))
            self.read(len(right) * len(left) if type(left) is str else 0)
            return left in right
        if isinstance(right, _SEQUENCES):
            self.walk(left)
            self.walk(right)
            return left in right
        if isinstance(right, range):
            self.step(len(right))
            return left in right
        return any(item is left or self.compare("eq", item, left) for item in self.iterate(right))

    def search(self, text: str, part: str, backwards: bool = False) -> None:
        """Python searches long texts forwards in linear time; otherwise it may compare `part` at every place."""
        steady = len(text) >= 30_000 and not backwards
        self.read(2 * len(text) + (0 if steady else len(text) * len(part) >> 3))

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`."""
        part = slice(start, stop, step)
        if isinstance(value, str):
            self.read(len(range(*part.indices(len(value)))))
        elif isinstance(value, list | tuple):
            self.step(len(range(*part.indices(len(value)))) >> 2)
        return value[part]

    def escape(self, value: Any) -> None:
        """Pay for a text that may grow as HTML or an address does."""
        self.read(_ESCAPED * len(self.text(value)))

"""What the calls of a chat template cost, and the methods that it may call: what is in no table cannot be called.

Left out on purpose: methods that change a value, and those that lead from text to bytes, whose codecs are quadratic.
Knows neither filters nor the syntax of templates.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.utils import Cycler, Namespace
from markupsafe import Markup

from assay.engine.budget import Budget

# A price pays for a call before it happens. It takes the call's own arguments and gives back its first.
Price = Callable[..., Any]
_MAX_DIGITS = 300


def _others(budget: Budget, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if args:
        budget.walk(args)
    if kwargs:
        budget.walk(kwargs)


def pay_linear(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    budget.walk(value)
    _others(budget, args, kwargs)
    return value


def pay_shallow(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Looks at the items, not at what is in them."""
    if hasattr(value, "__len__"):
        budget.step(len(value))
    _others(budget, args, kwargs)
    return value


def pay_settled(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Looks at all that is in the items, each some log2(n) times: sorts or compares them."""
    value = list(value) if isinstance(value, Iterator) else value
    size = len(value) if hasattr(value, "__len__") else 0
    budget.step(4 * size)
    for _ in range(size.bit_length()):
        budget.walk(value)
    _others(budget, args, kwargs)
    return value


def pay_characters(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """One Python object for each few characters."""
    budget.step(len(budget.text(value)))
    _others(budget, args, kwargs)
    return value


def pay_escaped(budget: Budget, value: Any) -> Any:
    budget.escape(value)
    return value


def _searched(budget: Budget, value: Any, part: Any, *args: Any) -> Any:
    _others(budget, (part, *args), {})
    if isinstance(part, str):
        budget.search(value, part)
    return value


def _searched_backwards(budget: Budget, value: Any, part: Any, *args: Any) -> Any:
    _others(budget, (part, *args), {})
    if isinstance(part, str):
        budget.search(value, part, backwards=True)
    return value


def pay_trimmed(budget: Budget, value: Any, chars: Any = None) -> Any:
    """Each character may be looked up among all of `chars`."""
    if type(value) is str and chars is None:
        budget.read(len(value))
    else:
        budget.search(budget.text(value), budget.text(chars or ""), backwards=True)
    return value


def _split(budget: Budget, value: Any, sep: Any = None, maxsplit: int = -1) -> Any:
    if isinstance(sep, str) and sep:
        budget.search(value, sep, backwards=True)
        budget.step(value.count(sep) if maxsplit < 0 else min(maxsplit, len(value)))
    else:
        budget.step(len(value) >> 2 if maxsplit < 0 else min(maxsplit, len(value)))
        budget.read(len(value))
    return value


def _lines(budget: Budget, value: Any, keepends: Any = False) -> Any:
    budget.step(len(value) >> 2)
    budget.read(len(value))
    return value


def pay_parsed(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Digits are dearer than letters."""
    if isinstance(value, str):
        budget.read(8 * len(value))
    return value


def pay_widened(budget: Budget, value: Any, width: Any = 80, *fill: Any) -> Any:
    pay_linear(budget, value, *fill)
    if isinstance(width, int):
        budget.read(max(width, 0))
    return value


def _tabbed(budget: Budget, value: Any, tabsize: Any = 8) -> Any:
    if isinstance(tabsize, int):
        budget.read(len(value) + value.count("\t") * max(tabsize, 0))
    return value


def pay_indented(budget: Budget, value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> Any:
    if not isinstance(value, str):
        return value
    _lines(budget, value)
    size = len(width) if isinstance(width, str) else max(width, 0)
    budget.read((len(value.splitlines()) + 1) * (size + 1))
    return value


def pay_batched(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> Any:
    if isinstance(linecount, int):
        budget.step(max(linecount, 0))
    return pay_shallow(budget, value, fill_with)


def pay_rounded(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if not isinstance(value, int | float):  # a text would be multiplied by 10**precision
        raise TypeError(f"round takes a number, not {type(value).__name__}")
    if isinstance(precision, int) and abs(precision) > _MAX_DIGITS:
        raise ValueError(f"round takes at most {_MAX_DIGITS} digits")
    return value


def pay_summed(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    """A sum of lists copies them over and over; only numbers are summed."""
    if not isinstance(start, int | float):
        raise TypeError(f"sum adds numbers, not {type(start).__name__}")
    return pay_shallow(budget, value, attribute)


def _copied(budget: Budget, value: Any, *args: Any) -> Any:
    return pay_shallow(budget, value, *args)


def _looked_up(budget: Budget, value: Any, key: Any, default: Any = None) -> Any:
    budget.key(key)
    return value


def _free(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _compared(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    _others(budget, args, kwargs)
    return value


_TEXT_PRICES: dict[Price, tuple[str, ...]] = {
    pay_linear: (
        *("capitalize", "casefold", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower"),
        *("isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower", "removeprefix", "removesuffix"),
        *("swapcase", "title", "upper"),
    ),
    _compared: ("endswith", "startswith"),
    _searched: ("count", "find", "index", "partition"),
    _searched_backwards: ("rfind", "rindex", "rpartition"),
    pay_trimmed: ("lstrip", "rstrip", "strip"),
    _split: ("rsplit", "split"),
    _lines: ("splitlines",),
    pay_widened: ("center", "ljust", "rjust", "zfill"),
    _tabbed: ("expandtabs",),
}
_OTHER_PRICES: dict[tuple[type, str], Price] = {
    (dict, "get"): _looked_up,
    (dict, "items"): _free,
    (dict, "keys"): _free,
    (dict, "values"): _free,
    (dict, "copy"): _copied,
    **{(kind, name): pay_linear for kind in (list, tuple) for name in ("count", "index")},
    (list, "copy"): _copied,
    (float, "is_integer"): _free,
    (LoopContext, "cycle"): _compared,
    (LoopContext, "changed"): _compared,
    (Cycler, "next"): _free,
    (Cycler, "reset"): _free,
}


def _runner(price: Price) -> Callable[..., Any]:
    def run(budget: Budget, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        price(budget, method.__self__, *args, **kwargs)  # type: ignore[attr-defined]
        return budget.made(method(*args, **kwargs))

    return run


def _run_join(budget: Budget, method: Callable[..., str], items: Any) -> str:
    items = list(budget.iterate(items))
    separator: str = method.__self__  # type: ignore[attr-defined]
    total = len(separator) * len(items) + sum(len(item) for item in items if isinstance(item, str))
    budget.read(total)
    if isinstance(separator, Markup):
        budget.read(5 * total)
    return method(items)


def run_replace(budget: Budget, method: Callable[..., str], old: Any, new: Any, count: Any = -1) -> str:
    text: str = method.__self__  # type: ignore[attr-defined]
    if isinstance(old, str) and isinstance(new, str):
        budget.search(text, old)
        budget.read(text.count(old) * len(new) * (1 if type(text) is str else 6))
    return method(old, new, count)


METHODS: dict[tuple[type, str], Callable[..., Any]] = {
    **{(str, name): _runner(price) for price, names in _TEXT_PRICES.items() for name in names},
    **{key: _runner(price) for key, price in _OTHER_PRICES.items()},
    (str, "join"): _run_join,
    (str, "replace"): run_replace,
}
METHODS |= {(Markup, name): run for (kind, name), run in METHODS.items() if kind is str}


def make_dict(budget: Budget, pairs: Any = (), /, **named: Any) -> dict[Any, Any]:
    """`dict(…)` of a template."""
    budget.walk(pairs)
    items = pairs.items() if isinstance(pairs, Mapping) else budget.iterate(pairs)
    return {**{budget.key(key): value for key, value in items}, **named}


def make_namespace(budget: Budget, pairs: Any = (), /, **named: Any) -> Namespace:
    """`namespace(…)` of a template."""
    return Namespace(make_dict(budget, pairs, **named))

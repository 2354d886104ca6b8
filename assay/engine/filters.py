"""The filters and tests that a chat template may use, each paid for. Knows neither their syntax nor messages.

Left out on purpose: filters for web pages that backtrack or are quadratic in a text (pprint, striptags, urlize,
wordwrap, xmlattr).
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from jinja2.filters import FILTERS, ignore_case, make_attrgetter
from jinja2.tests import TESTS
from jinja2.utils import _PassArg, pass_context
from markupsafe import Markup

from assay.engine.budget import Budget
from assay.engine.prices import (
    Price,
    pay_batched,
    pay_characters,
    pay_escaped,
    pay_indented,
    pay_linear,
    pay_parsed,
    pay_rounded,
    pay_settled,
    pay_shallow,
    pay_summed,
    pay_trimmed,
    pay_widened,
    run_replace,
)

_FREE_TESTS = (
    *("boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable", "mapping", "none"),
    *("number", "sameas", "sequence", "string", "true", "undefined"),
)
_FREE_FILTERS = ("abs", "attr", "count", "d", "default", "first", "last", "length", "random")

_FILTER_PRICES: dict[Price, tuple[str, ...]] = {
    pay_linear: (*("capitalize", "lower", "safe", "string", "truncate", "upper"),),
    pay_parsed: ("filesizeformat", "float", "int"),
    pay_escaped: ("e", "escape", "forceescape", "urlencode"),
    pay_characters: ("title", "wordcount"),
    pay_trimmed: ("trim",),
    pay_shallow: ("items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"),
    pay_settled: ("dictsort", "groupby", "max", "min", "sort"),
    pay_batched: ("batch",),
    pay_indented: ("indent",),
    pay_rounded: ("round",),
    pay_summed: ("sum",),
    pay_widened: ("center",),
}


# Where the path of an attribute stands among a filter's arguments. `map` takes it by name alone.
_PATH_PLACES = {"groupby": 0, "max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2, "sum": 0}
_MAX_PARTS = 8


def _check_path(path: Any) -> None:
    """`a.b.c` is looked up for each item, part by part."""
    if isinstance(path, str) and path.count(".") + path.count(",") >= _MAX_PARTS:
        raise ValueError(f"an attribute's path has at most {_MAX_PARTS} parts")


def _priced(name: str, price: Price) -> Callable[..., Any]:
    """A filter of Jinja's that is paid for. That it takes the context also keeps it from being run at compile time."""
    function = FILTERS[name]
    wants = _PassArg.from_obj(function)
    place = _PATH_PLACES.get(name, sys.maxsize)

    @pass_context
    def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.budget
        if len(args) > place:
            _check_path(args[place])
        if kwargs:
            _check_path(kwargs.get("attribute"))
        value = price(budget, value, *args, **kwargs)
        if wants is None:
            return budget.made(function(value, *args, **kwargs))
        first = context if wants is _PassArg.context else context.environment
        return budget.made(
            function(context.eval_ctx if wants is _PassArg.eval_context else first, value, *args, **kwargs)
        )

    return run


@pass_context
def _join(context: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    budget: Budget = context.budget
    _check_path(attribute)
    get = make_attrgetter(context.environment, attribute)
    separator = budget.text(d)
    texts = [budget.text(get(item)) for item in budget.iterate(value)]
    budget.read(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


@pass_context
def _replace(context: Any, s: Any, old: Any, new: Any, count: Any = None) -> str:
    budget: Budget = context.budget
    text = str(budget.text(s))
    return run_replace(budget, text.replace, budget.text(old), budget.text(new), -1 if count is None else count)


@pass_context
def _format(context: Any, value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("format takes either positional or named arguments")
    budget: Budget = context.budget
    return budget.percent(value if isinstance(value, Markup) else budget.text(value), kwargs or args)


@pass_context
def _unique(context: Any, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Iterator[Any]:
    budget: Budget = context.budget
    _check_path(attribute)
    get = make_attrgetter(context.environment, attribute, None if case_sensitive else ignore_case)
    seen = set()
    for item in budget.iterate(value):
        key = budget.key(get(item))
        budget.walk(key)
        if key not in seen:
            seen.add(key)
            yield item


FILTERS_ALLOWED: dict[str, Callable[..., Any]] = {
    **{name: FILTERS[name] for name in _FREE_FILTERS},
    **{name: _priced(name, price) for price, names in _FILTER_PRICES.items() for name in names},
    "join": _join,
    "replace": _replace,
    "format": _format,
    "unique": _unique,
}


def _comparing(name: str) -> Callable[..., bool]:
    @pass_context
    def run(context: Any, value: Any, other: Any) -> bool:
        return bool(context.budget.compare(name, value, other))

    return run


@pass_context
def _in(context: Any, value: Any, sequence: Any) -> bool:
    return bool(context.budget.within(value, sequence))


def _rest(context: Any, value: Any, number: Any) -> Any:
    if isinstance(value, str):  # `'%9999999d' is odd` would format it
        raise TypeError("a text is not divisible")
    return context.budget.operate("%", value, number)


@pass_context
def _divisible(context: Any, value: Any, number: Any = 2) -> bool:
    return bool(_rest(context, value, number) == 0)


@pass_context
def _odd(context: Any, value: Any) -> bool:
    return bool(_rest(context, value, 2) == 1)


@pass_context
def _is_lower(context: Any, value: Any) -> bool:
    return bool(context.budget.text(value).islower())


@pass_context
def _is_upper(context: Any, value: Any) -> bool:
    return bool(context.budget.text(value).isupper())


_COMPARISONS = {
    "eq": ("eq", "==", "equalto"),
    "ne": ("ne", "!="),
    "gt": ("gt", ">", "greaterthan"),
    "gteq": ("ge", ">="),
    "lt": ("lt", "<", "lessthan"),
    "lteq": ("le", "<="),
}
TESTS_ALLOWED: dict[str, Any] = {
    **{name: TESTS[name] for name in _FREE_TESTS},
    **{alias: _comparing(name) for name, aliases in _COMPARISONS.items() for alias in aliases},
    "in": _in,
    "divisibleby": _divisible,
    "even": _divisible,
    "odd": _odd,
    "lower": _is_lower,
    "upper": _is_upper,
}

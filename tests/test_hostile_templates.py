"""A stranger's chat templates: each attack ends within its budget of steps, characters and memory, and says why.

Nothing here is timed: what a template may do is counted.
"""

import tracemalloc
from typing import Any

import pytest

from assay.engine import chat
from assay.engine.budget import Budget
from assay.engine.chat import ChatTemplate
from assay.errors import CheckpointError, RequestError
from assay.sequence import ChatPrompt

TALK = [{"role": "user", "content": "the coffee"}, {"role": "assistant", "content": "was great"}]
DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = EXPR %}{% endfor %}{{ n.x }}"
SHARED = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
SHARED_TUPLE = SHARED.replace("[n.x, n.x]", "(n.x, n.x)").replace("[1]", "(1,)")
BIG = "{% set big = 'a' * 400000 %}"

LOOPS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a loop's condition": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
    "a recursive loop in two": "{% for a in [1] recursive %}{{ loop([a, a]) }}{{ loop([a, a]) }}{% endfor %}",
    "a recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros in turn": "{% macro f(g) %}{{ g(g) }}{{ g(g) }}{% endmacro %}{{ f(f) }}",
    "a macro that calls twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(40) }}",
    "call blocks": "{% macro f() %}{{ caller() }}{% call f() %}{% endcall %}{% endmacro %}{% call f() %}{% endcall %}",
    "continue": "{% for a in range(99999) %}{% for b in range(99999) %}{% continue %}{% endfor %}{% endfor %}",
    "a chain of lazy filters": "{% for a in range(9999) %}{{ range(99999)|map('string')|select|list }}{% endfor %}",
    "a lazy filter of nothing": "{% for a in range(9999) %}{{ range(99999)|reject('number')|first }}{% endfor %}",
    "a test in a loop": "{% for a in range(99999) %}{{ 'x' in range(99999) }}{% endfor %}",
    "a wide loop body": "{% for a in range(99999) %}" + "{% if a %}{% endif %}" * 1000 + "{% endfor %}",
    "a long literal in a loop": "{% for a in range(99999) %}{% set x = [" + "1," * 2000 + "] %}{% endfor %}",
    "a long text in a loop": "{% for a in range(99999) %}" + "x" * 50000 + "{% endfor %}",
    "a long text in a macro": "{% macro f() %}"
    + "x" * 50000
    + "{% endmacro %}{% for a in range(9999) %}{{ f() }}{% endfor %}",
    "slices": "{% for a in range(99999) %}{% for b in [1]|slice(9) %}{% endfor %}{% endfor %}",
    "one slice filter": "{% for b in [1]|slice(10 ** 17) %}{% endfor %}",
    "today, again and again": "{% for a in range(99999) %}{{ strftime_now('%Y') }}{% endfor %}",
    "star arguments": "{% macro f() %}{{ varargs|length }}{% endmacro %}"
    "{% for a in range(9999) %}{{ f(*range(99999)) }}{% endfor %}",
    "cycler of many": "{% for a in range(9999) %}{% set c = cycler(*range(99999)) %}{% endfor %}",
}
TEXTS = {
    "a text times a number": "{{ 'a' * 10 ** 10 }}",
    "a number times a text": "{{ 10000000000 * 'a' }}",
    "a list times a number": "{{ [0] * 10 ** 10 }}",
    "doubling with +": DOUBLED.replace("EXPR", "n.x + n.x"),
    "doubling with ~": DOUBLED.replace("EXPR", "n.x ~ n.x"),
    "doubling with *": DOUBLED.replace("EXPR", "n.x * 2"),
    "doubling with join": DOUBLED.replace("EXPR", "[n.x, n.x]|join"),
    "doubling with a text's join": DOUBLED.replace("EXPR", "n.x.join([n.x, n.x])"),
    "doubling with replace": DOUBLED.replace("EXPR", "n.x|replace('a', n.x)"),
    "doubling with a text's replace": DOUBLED.replace("EXPR", "n.x.replace('a', n.x)"),
    "doubling with %": DOUBLED.replace("EXPR", "'%s%s' % (n.x, n.x)"),
    "doubling with named %": DOUBLED.replace("EXPR", "'%(a)s%(a)s' % {'a': n.x}"),
    "doubling with format": DOUBLED.replace("EXPR", "'{0}{0}'.format(n.x)"),
    "doubling with the filter format": DOUBLED.replace("EXPR", "'%s%s'|format(n.x, n.x)"),
    "doubling with escape": DOUBLED.replace("EXPR", "n.x|e|e|replace('a', '<<')|string"),
    "doubling with urlencode": DOUBLED.replace("EXPR", "(n.x ~ '%%')|urlencode"),
    "doubling with tojson": DOUBLED.replace("EXPR", "(n.x ~ '\"')|tojson"),
    "doubling a list": DOUBLED.replace("'ab'", "[1]").replace("EXPR", "n.x + n.x"),
    "doubling a marked text": DOUBLED.replace("'ab'", "'<b>'|safe").replace("EXPR", "n.x + '<' + n.x"),
    "doubling with a set block": DOUBLED.replace("{% set n.x = EXPR %}", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "a wide %": "{{ '%1000000000d' % 1 }}",
    "a wide % of a list": "{{ '%*d' % (1000000000, 1) }}",
    "a precise %": "{{ '%.1000000000f' % 1 }}",
    "a wide named %": "{{ '%(a(b)c)1000000000d' % {'a(b)c': 1} }}",
    "a wide % by a filter": "{{ '%1000000000d'|format(1) }}",
    "a wide % by a test": "{{ '%1000000000d' is odd }}",
    "a wide % by another test": "{{ '%1000000000d' is divisibleby(1) }}",
    "a wide % by select": "{{ ['%1000000000d']|select('even')|list }}",
    "a wide format": "{{ '{:1000000000}'.format(1) }}",
    "a precise format": "{{ '{:.1000000000f}'.format(1) }}",
    "a wide nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a wide format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "a wide format by attr": "{{ ('{:1000000000}'|attr('format'))(1) }}",
    "a wide format by map": "{% for f in ['{:1000000000}']|map(attribute='format') %}{{ f(1) }}{% endfor %}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "rjust": "{{ 'a'.rjust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "a text's center": "{{ 'a'.center(10 ** 10, '-') }}",
    "expandtabs": "{{ '\t\t'.expandtabs(1000000000) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "indent": "{{ 'a\nb'|indent(1000000000) }}",
    "indent by a text": BIG + "{{ ('a\n' * 100000)|indent(big) }}",
    "wordwrap": BIG + "{{ big|wordwrap(1) }}",
    "batch": "{{ [1]|batch(1000000000, 0)|list }}",
    "tojson with a large indent": "{{ messages|tojson(indent=1000000000) }}",
    "tojson with an indent of text": BIG + "{{ messages|tojson(indent=big) }}",
    "tojson with separators": BIG + "{{ (range(99)|list)|tojson(separators=(big, big)) }}",
    "a date as long as a book": "{{ strftime_now('%c' * 100000) }}",
    "a wide date": "{{ strftime_now('%1000000000d' * 40) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "translate": BIG + "{{ ('b' * 99999).translate({98: big}) }}",
    "lipsum": "{{ lipsum(1000000000) }}",
    "a large round of a text": "{{ 'a'|round(9, 'floor') }}",
    "a text in a huge slice of a list": "{{ (range(99999)|list)[::1] * 99999 }}",
}
NUMBERS = {
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a power of a power": "{{ 10 ** (10 ** 10) }}",
    "powers in a loop": "{% set n = namespace(x=2) %}{% for i in range(99) %}"
    "{% set n.x = n.x ** 2 %}{% endfor %}{{ n.x }}",
    "products in a loop": "{% set n = namespace(x=2) %}{% for i in range(9999) %}"
    "{% set n.x = n.x * 9 %}{% endfor %}{{ n.x }}",
    "sums of themselves": "{% set n = namespace(x=1) %}{% for i in range(9999) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "a text that is a number": "{{ ('f' * 100000)|int(0, 16) // 3 }}",
    "a large round": "{{ 5|round(-1000000000) }}",
    "a large round down": "{{ 5|round(1000000000, 'floor') }}",
    "a long number": "{{ " + "9" * 5000 + " }}",
    "a long hexadecimal number": "{{ 0x" + "f" * 90000 + " // 7 }}",
    "numbers that collide": "{{ range(0, 2305843009213693951 * 99999, 2305843009213693951)|unique|list|length }}",
    "numbers that collide as keys": "{{ dict(range(0, 230584300921369395100000, 2305843009213693951)|batch(2)) }}",
    "a float to a number": "{{ 1e308|int * 2 }}",
}
DEEP = {
    "a list of itself, printed": SHARED + "{{ n.x }}",
    "a list of itself, as JSON": SHARED + "{{ n.x|tojson }}",
    "a list of itself, joined": SHARED + "{{ n.x|join }}",
    "a list of itself, formatted": SHARED + "{{ '%s' % n.x }}",
    "a list of itself, in braces": SHARED + "{{ '{}'.format(n.x) }}",
    "a list of itself, as repr": SHARED + "{{ '{!r:.9}'.format(n.x) }}",
    "a list of itself, concatenated": SHARED + "{{ n.x ~ '' }}",
    "a list of itself, raised": SHARED + "{{ raise_exception(n.x) }}",
    "a list of itself, as a string": SHARED + "{{ n.x|string|length }}",
    "a list of itself, tested": SHARED + "{{ n.x is lower }}",
    "a list of itself, sought": SHARED + "{{ [1].index(n.x) }}",
    "a list of itself, by name": SHARED + "{{ n }}",
    "lists of themselves, compared": SHARED + "{% set a = n.x %}" + SHARED + "{{ a == n.x }}",
    "lists of themselves, in a chain": SHARED + "{% set a = n.x %}" + SHARED + "{{ a == n.x == a }}",
    "lists of themselves, sought": SHARED + "{% set a = n.x %}" + SHARED + "{{ a in [n.x] }}",
    "lists of themselves, changed": SHARED
    + "{% set a = n.x %}"
    + SHARED
    + "{% for i in [a, n.x] %}{{ loop.changed(i) }}{% endfor %}",
    "lists of themselves, sorted": SHARED + "{% set a = n.x %}" + SHARED + "{{ [a, n.x]|sort }}",
    "lists of themselves, by a test": SHARED + "{% set a = n.x %}" + SHARED + "{{ a is eq(n.x) }}",
    "a tuple of itself, as a key": SHARED_TUPLE + "{% set d = {n.x: 1} %}",
    "a tuple of itself, looked up": SHARED_TUPLE + "{{ {}[n.x] }}",
    "a tuple of itself, got": SHARED_TUPLE + "{{ {}.get(n.x) }}",
    "a tuple of itself, in a dict": SHARED_TUPLE + "{{ n.x in {} }}",
    "a tuple of itself, unique": SHARED_TUPLE + "{{ [n.x]|unique|list }}",
    "a tuple of itself, as an attribute": SHARED_TUPLE + "{{ [{}]|map(attribute=n.x)|list }}",
    "a tuple of itself, in dict()": SHARED_TUPLE + "{{ dict([(n.x, 1)]) }}",
    "a namespace in itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    "a long path": "{{ range(9999)|map(attribute='a.' * 40000, default={})|list }}",
    "a long path to select": "{{ range(9999)|selectattr('a.' * 40000)|list }}",
    "a long path to join": "{{ range(9999)|join('', 'a.' * 40000) }}",
    "many keys to sort by": "{{ range(9999)|sort(false, false, 'a,' * 40000) }}",
    "sums of lists": "{{ ([[1]] * 50000)|sum(start=[]) }}",
}
QUADRATIC = {
    "rfind": BIG + "{{ big.rfind('b' + 'a' * 200000) }}",
    "rsplit": BIG + "{{ big.rsplit('b' + 'a' * 200000) }}",
    "strip": BIG + "{{ big.strip('bcde' * 50000 + 'a') }}",
    "trim": BIG + "{{ big|trim('bcde' * 50000 + 'a') }}",
    "encode": BIG + "{{ big.encode('idna') }}",
    "striptags": BIG + "{{ ('<!---->' * 99999)|striptags }}",
    "urlize": "{{ ('a@' * 99999)|urlize }}",
    "pprint": "{{ messages|pprint }}",
    "in, again and again": BIG + "{% for i in range(99999) %}{{ 'b' in big }}{% endfor %}",
    "comparing, again and again": BIG + "{% set c = big + '' %}{% for i in range(99999) %}{{ big == c }}{% endfor %}",
    "slicing, again and again": BIG + "{% for i in range(99999) %}{% set c = big[1:] %}{% endfor %}",
    "upper, again and again": BIG + "{% for i in range(99999) %}{{ big|upper|length }}{% endfor %}",
    "splitting, again and again": BIG + "{% for i in range(99999) %}{{ big.split('a')|length }}{% endfor %}",
    "lists of characters": BIG + "{% for i in range(99) %}{{ big|list|length }}{% endfor %}",
    "sorted characters": BIG + "{{ big|sort|length }}",
    "copies of a dict": "{% set d = dict(range(20000)|batch(2)) %}{% for i in range(9999) %}"
    "{% set e = d.copy() %}{% endfor %}",
}
ESCAPES = {
    "the class of a text": "{{ ''.__class__ }}",
    "its ancestors": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by a subscript": "{{ ''['__class__']['__mro__'] }}",
    "by attr": "{{ ''|attr('__class__') }}",
    "by map": "{{ ['']|map(attribute='__class__')|list }}",
    "by selectattr": "{{ ['']|selectattr('__class__')|list }}",
    "by groupby": "{{ ['']|groupby('__class__') }}",
    "by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "by format, indirectly": "{% set f = 'format' %}{{ ('{0.__class__}'|attr(f))('') }}",
    "by format, from a list": "{% set f = ['{0.__class__}'.format] %}{{ f[0]('') }}",
    "by format, of a filter": "{% for f in ['{0.__class__}']|map(attribute='format') %}{{ f('') }}{% endfor %}",
    "by format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "by a marked text's format": "{{ ('{0.__class__}'|safe).format('') }}",
    "by a marked text's format_map": "{{ ('{a.__class__}'|safe).format_map({'a': ''}) }}",
    "the globals of raise_exception": "{{ raise_exception.__globals__ }}",
    "the globals of strftime_now": "{{ strftime_now.__globals__ }}",
    "the globals of a global": "{{ cycler.__init__.__globals__ }}",
    "the globals of a joiner": "{{ joiner().__init__.__globals__ }}",
    "the globals of lipsum": "{{ lipsum.__globals__ }}",
    "the globals of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "the environment of a macro": "{% macro f() %}{% endmacro %}{{ f._environment }}",
    "the context of self": "{{ self._TemplateReference__context }}",
    "the iterator of a loop": "{% for a in [1] %}{{ loop._iterable.__class__ }}{% endfor %}",
    "the frame of a generator": "{{ (messages|map('string')).gi_frame }}",
    "the code of a generator": "{{ (messages|map('string')).gi_code }}",
    "the namespace's own": "{{ namespace(a=1)._Namespace__attrs }}",
    "the class of a namespace": "{{ namespace().__class__ }}",
    "the owner of a method": "{{ ''.upper.__self__ }}",
    "a class method": "{{ dict.fromkeys(range(9)) }}",
    "mro of a class": "{{ dict.mro() }}",
    "an unbound method": "{{ cycler.next(1) }}",
    "appending": "{% set _ = messages.append(1) %}",
    "updating": "{% set _ = messages[0].update(a=1) %}",
    "xmlattr": "{{ {'a b': 1}|xmlattr }}",
    "include": "{% include '/etc/passwd' %}",
    "include what may be missing": "{% include ['/etc/passwd'] ignore missing %}",
    "import": "{% import '/etc/passwd' as x %}",
    "import a name": "{% from '/etc/passwd' import x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "a block": "{% block a %}{% endblock %}",
    "a block of itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a scoped block": "{% for i in [1] %}{% block a scoped %}{{ i }}{% endblock %}{% endfor %}",
    "autoescape": "{% autoescape true %}{% endautoescape %}",
    "an unknown filter": "{{ 1|system }}",
}
COMPILING = {
    "a long source": "x" * 200_000,
    "many statements": "{{ a }}" * 12_000,
    "deep brackets": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep loops": "{% for a in b %}" * 50 + "{% endfor %}" * 50,
    "deep conditions": "{% if a %}" * 500 + "{% endif %}" * 500,
    "a long sum": "{{ 1" + " - 1" * 5000 + " }}",
    "nothing but opening": "{{ " * 1000,
    "constants that fold": "{{ 'a'|center(1000000000)|upper }}",
}
ATTACKS = {**LOOPS, **TEXTS, **NUMBERS, **DEEP, **QUADRATIC, **ESCAPES, **COMPILING}


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[Budget]:
    """The budgets of all renderings."""
    budgets: list[Budget] = []
    make = chat._budget_for

    def kept(*args: Any) -> Budget:
        budgets.append(make(*args))
        return budgets[-1]

    monkeypatch.setattr(chat, "_budget_for", kept)
    return budgets


@pytest.mark.parametrize("source", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_ends_with_an_error_that_names_the_template(source: str, spent: list[Budget]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((RequestError, CheckpointError), match=r"^The chat template .+"):
            ChatTemplate(source, {}).render(ChatPrompt(TALK))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert all(budget.depth <= 65 for budget in spent)


def test_two_renderings_spend_the_same(spent: list[Budget]) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role ~ m.content|trim }}{% endfor %}", {})
    template.render(ChatPrompt(TALK))
    template.render(ChatPrompt(TALK))
    assert len({(budget.steps, budget.characters) for budget in spent}) == 1


def test_a_larger_conversation_may_spend_more() -> None:
    """A text appended to at each message is honest, and grows with the square."""
    source = "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x + m.content %}{% endfor %}{{ n.x }}"
    talk = [{"role": "user", "content": "word " * 200}] * 200
    assert ChatTemplate(source, {}).render(ChatPrompt(talk)) == "word " * 40_000


def test_memory_is_in_proportion_to_the_request() -> None:
    source = TEXTS["doubling with +"].replace("'ab'", "messages[0].content")
    template = ChatTemplate(source, {})
    tracemalloc.start()
    with pytest.raises(RequestError, match="stopped"):
        template.render(ChatPrompt([{"role": "user", "content": "a" * 100_000}]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 100_000


@pytest.mark.parametrize("value", ["a" * 2_000_000, [[[1] * 1000] * 100], {"a": {"b": list(range(10_000))}}])
def test_large_variables_of_a_request(value: Any) -> None:
    prompt = ChatPrompt(TALK, template_kwargs={"x": value})
    assert ChatTemplate("{{ x|tojson|length > 9000 }}", {}).render(prompt) == "True"


def test_a_deep_variable_of_a_request() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for source in ("{{ x|tojson }}", "{{ x }}", "{{ x == y }}"):
        with pytest.raises(RequestError, match=r"^The chat template .*recursion"):
            ChatTemplate(source, {}).render(ChatPrompt(TALK, template_kwargs={"x": deep, "y": [[deep]]}))

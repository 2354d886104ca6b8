"""What honest templates write means in the sandbox what it means in Jinja."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from assay.engine.chat import ChatTemplate
from assay.sequence import ChatPrompt

TALK = [{"role": "user", "content": "the coffee"}, {"role": "assistant", "content": "was great"}]
VARIABLES = {"s": "abc", "n": 3, "t": [3, 1, 2], "d": {"k": 1}}

PROBES = {
    "add": "{{ 'a' + 'b' + 'c' }}|{{ 1 + 2.5 + 3 }}|{{ [1] + [2] + [3] }}|{{ (1,) + (2,) }}|{{ ('<'|e) + '<' + '&' }}",
    "join": "{{ 1 ~ 'a' ~ none ~ [1] ~ x }}|{{ ('<'|e) ~ '<' }}",
    "compare": "{{ 1 < 2 }}{{ 1 <= n }}{{ n > 1 }}{{ n >= 4 }}{{ n != 3 }}{{ 1 < n < 4 }}{{ t == t }}{{ 'a' <= s }}",
    "compare two": "{{ n <= d.k }}{{ n >= d.k }}{{ n < d.k }}{{ n == d.k }}{{ s != x }}{{ 1 <= n >= d.k }}",
    "in": "{{ 'a' in s }}{{ 'z' not in s }}{{ ('z' not in s) == true }}{{ n in [1, 3] }}{{ n in t }}{{ 'k' in d }}",
    "in others": "{{ [1] in [[1]] }}{{ 2 in range(3) }}{{ 'k' in d.keys() }}{{ 1 in d.values() }}{{ s in x }}"
    "{{ 1 in t|map('int') }}{{ not 'a' in s }}",
    "operators": "{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 5 }}{{ 2**-1 }}{{ 'ab' * 3 }}{{ t * 2 }}{{ 7 / 2 }}{{ 1 - n }}{{-n}}",
    "percent": "{{ '%s is %05.2f%%' % (s, n) }}{{ '%(a)s' % {'a': 1} }}{{ '%s'|format(s) }}{{ '%r' % s }}"
    "{{ '%(a)s'|format(a=1) }}",
    "format": "{{ '{:>5}{:.2f}{}{!r}'.format(s, n, t, s) }}{{ '{a[k]}'.format(a=d) }}{{ '{k}'.format_map(d) }}",
    "slices": "{{ s[1:] }}{{ s[::-1] }}{{ t[:2] }}{{ t[-1] }}{{ t[::2] }}{{ d['k'] }}{{ d.k }}{{ d.none }}"
    "{{ d['items'] is callable }}",
    "texts": "{{ s.upper() }}{{ s.split('b') }}{{ s.center(9, '-') }}{{ s.replace('a', 'xx') }}{{ s.rsplit('b', 1) }}"
    "{{ ','.join(['a', 'b']) }}{{ 'a\tb'.expandtabs(4) }}{{ s.strip('ac') }}{{ s.find('c') }}{{ s.split() }}"
    "{{ s.startswith(('a', 'z')) }}{{ 'a\nb'.splitlines() }}",
    "lists": "{{ t|sort|join(',') }}{{ t|sum }}{{ t|max }}{{ [{'a': 1}]|map(attribute='a')|list }}{{ t|reverse|list }}"
    "{{ [1, 1]|unique|list }}{{ t|batch(2, 0)|list }}{{ t|slice(2)|list }}{{ t|select('odd')|list }}{{ s|list }}"
    "{{ t|reject('gt', 1)|list }}{{ [d, d]|groupby('k') }}{{ [d]|selectattr('k', 'equalto', 1)|list }}{{ t|first }}",
    "filters": "{{ 'a b'|title }}{{ 'a\nb'|indent(2) }}{{ d|dictsort }}{{ '1'|int + 1 }}{{ 3.14159|round(2) }}"
    "{{ s|replace('a', 'b') }}{{ d|items|list }}{{ s|center(9) }}{{ s|urlencode }}{{ s|truncate(2, true, '') }}",
    "lazy": "{% if t|select('gt', 9) %}yes{% endif %}"
    "{% for a in t|map('string') %}{{ a }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "loops": "{% for a in t if a > 1 %}{{ loop.index }}{{ loop.cycle('x', 'y') }}{{ loop.changed(a) }}{% else %}no"
    "{% endfor %}{% for a in [[1, [2]], [3]] recursive %}{{ loop.depth }}{{ loop(a) if a is iterable }}{% endfor %}",
    "macros": "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller() if caller }}{% endmacro %}"
    "{{ f(1) }}{{ f(1, 2, 3, c=4) }}{% call f(1) %}called{% endcall %}{% for a in t %}{{ f(a) }}{% endfor %}",
    "names": "{% set n2 = namespace(a=1) %}{% set n2.a = n2.a + 1 %}{{ n2.a }}{% set c = cycler('a', 'b') %}"
    "{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}{{ j() }}{{ dict(a=1, **d) }}"
    "{{ dict([('a', 1)]) }}{{ range(1, 9, 3)|list }}",
    "blocks": "{% set q %}a{{ n }}{% endset %}{{ q }}{% filter upper %}b{{ q }}{% endfilter %}"
    "{% with z = 1 %}{{ z }}{% endwith %}",
    "undefined": "{{ x }}{{ x is defined }}{{ d.x is none }}{{ d.x|default('-') }}{{ 'x' in x }}{{ x == y }}"
    "{{ {x: 1}|length }}{{ d[x] is defined }}",
}


@pytest.mark.parametrize("source", PROBES.values(), ids=PROBES)
def test_an_expression_means_what_it_means_in_jinja(source: str) -> None:
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = jinja.from_string(source).render(VARIABLES)
    assert ChatTemplate(source, {}).render(ChatPrompt(TALK, template_kwargs=VARIABLES)) == expected

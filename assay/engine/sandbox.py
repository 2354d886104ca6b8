"""Jinja with a budget: a template's loops, calls and operators pay before they run, and call only what is in a table.

Knows neither messages nor checkpoints. Jinja's own sandbox keeps templates from Python's attributes; it bounds no work.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, modifies_known_mutable
from jinja2.utils import Cycler, Joiner, Namespace

from assay.engine.budget import MAX_NUMBER, Budget
from assay.engine.filters import FILTERS_ALLOWED, TESTS_ALLOWED
from assay.engine.prices import METHODS, make_dict, make_namespace

MAX_SOURCE = 131_072  # characters; the longest of the 70 that llama.cpp collects have 17,000
MAX_NODES = 10_000  # expressions and statements; the longest have 1,300
_WIDE_FIELD = re.compile(r"\d{4}")
_FIELD_STEPS = 20
_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(name for name in dir(LoopContext) if name[0] != "_")
_TEXT_METHODS = frozenset(name for kind, name in METHODS if kind is str)
_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">="}
_CONSTANTS = (str, int, float, bool, type(None))


class TemplateContext(Context):
    """The variables of one rendering, and what it may spend."""

    budget: Budget


class _Formatting:
    """`'…'.format`, not yet called."""

    def __init__(self, text: str, named: bool) -> None:
        self._text = text
        self._named = named

    def run(self, environment: "Sandbox", budget: Budget, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        if self._named:
            if len(args) != 1 or kwargs:
                raise TypeError("format_map() takes exactly one argument")
            kwargs = args[0]
            args = ()
        budget.read(len(self._text))
        return _Formatter(environment, budget).vformat(self._text, args, kwargs)


class _Formatter(SandboxedFormatter):
    def __init__(self, environment: "Sandbox", budget: Budget) -> None:
        super().__init__(environment)
        self._budget = budget

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._budget.step(_FIELD_STEPS)
        return super().get_field(field_name, args, kwargs)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            self._budget.walk(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        if _WIDE_FIELD.search(format_spec):
            raise SecurityError("it formats a field wider than 999 characters")
        self._budget.walk(value)
        text: str = format(value, format_spec)
        self._budget.read(len(text))
        return text


class Sandbox(ImmutableSandboxedEnvironment):
    """functions: what templates may call by name; each takes the Budget first."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    context_class = TemplateContext

    def __init__(self, functions: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(**options)
        self.code_generator_class = _Generator
        self.filters = dict(FILTERS_ALLOWED)
        self.tests = dict(TESTS_ALLOWED)
        safe_range: Any = self.globals["range"]
        named: dict[str, Callable[..., Any]] = {
            "range": lambda budget, *args: safe_range(*args),
            "dict": make_dict,
            "namespace": make_namespace,
            "cycler": lambda budget, *items: Cycler(*items),
            "joiner": lambda budget, sep=", ": Joiner(sep),
            **functions,
        }
        self.globals = {name: self.globals.get(name, run) for name, run in named.items()}
        self._functions = {self.globals[name]: run for name, run in named.items()}

    def render(self, template: Template, variables: Mapping[str, Any], budget: Budget) -> str:
        """Raises what the template raises: anything, and BudgetError."""
        context = template.new_context(dict(variables))
        assert isinstance(context, TemplateContext)
        context.budget = budget
        return budget.concat(template.root_render_func(context))

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        if _instrument(source)[1] > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} expressions and statements")
        return super()._generate(source, name, filename, defer_init)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The common cases first; Jinja's own way to all of them is long."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if (kind is str and attribute in _TEXT_METHODS) or (kind is LoopContext and attribute in _LOOP_ATTRIBUTES):
            return getattr(obj, attribute)
        if kind is Namespace:
            attributes = obj._Namespace__attrs
            if attribute in attributes and attribute[0] != "_":
                return attributes[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(argument) is str:
            if type(obj) is dict and argument in obj:
                return obj[argument]
        elif type(argument) is not int and not isinstance(argument, str | int | float | Undefined | None):
            raise TypeError(f"a key must be a text or a number, not {type(argument).__name__}")
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Any:
        is_method = type(value) is BuiltinMethodType and type(value.__self__) is str
        if not (is_method and value.__name__ in ("format", "format_map")):
            return None
        return _Formatting(value.__self__, value.__name__ == "format_map")

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        if modifies_known_mutable(obj, attribute):  # a message may well have a field `update`
            return super().unsafe_undefined(obj, attribute)
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is unsafe")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return context.budget.operate(operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        budget: Budget = __context.budget
        if args or kwargs:
            budget.step(len(args) + len(kwargs))
        kind = type(__obj)
        if kind is BuiltinMethodType or kind is MethodType:
            run = METHODS.get((type(__obj.__self__), __obj.__name__))
            if run is not None:
                return run(budget, __obj, *args, **kwargs)
            if isinstance(__obj.__self__, tuple(map(type, __self.extensions.values()))):
                return __obj(*args, **kwargs)
        elif kind is FunctionType or kind is type:
            run = __self._functions.get(__obj)
            if run is not None:
                return run(budget, *args, **kwargs)
        elif kind is Macro or kind is LoopContext:
            budget.enter()
            result = __obj(__context.eval_ctx, *args, **kwargs) if kind is Macro else __obj(*args, **kwargs)
            budget.leave()
            return result
        elif kind is _Formatting:
            return __obj.run(__self, budget, args, kwargs)
        elif kind is Joiner or isinstance(__obj, Undefined):
            return __obj(*args, **kwargs)
        name = getattr(__obj, "__name__", kind.__name__)
        raise SecurityError(f"a template may not call {name} of a {type(getattr(__obj, '__self__', __obj)).__name__}")


def _instrument(node: nodes.Node) -> tuple[int, int]:
    """Lets each pass through a loop or macro pay for the nodes in its body, which none can be cheaper than.

    Returns the steps that one pass through this node takes, and the nodes in it.
    """
    if isinstance(node, nodes.Const) and isinstance(node.value, int) and abs(node.value) > MAX_NUMBER:
        raise ValueError("it has a whole number beyond 2**60")
    if isinstance(node, nodes.For):
        body, count = _all(node.iter_child_nodes(only=("body",)))
        outside, others = _all(node.iter_child_nodes(only=("iter", "else_")))
        _prepend_step(node, body + 1)
        if node.test is not None:
            test, more = _instrument(node.test)
            others += more
            node.test = nodes.And(_python(f"budget.step({test + 1})"), node.test)
        return outside + 1, count + others + 1
    if isinstance(node, nodes.Macro | nodes.CallBlock):
        body, count = _all(node.iter_child_nodes(only=("body", "defaults")))
        outside, others = _instrument(node.call) if isinstance(node, nodes.CallBlock) else (0, 0)
        _prepend_step(node, body + 1)
        return outside + 1, count + others + 1
    steps, count = _all(node.iter_child_nodes())
    return steps + 1, count + 1


def _all(children: Iterable[nodes.Node]) -> tuple[int, int]:
    steps = count = 0
    for child in children:
        more, others = _instrument(child)
        steps, count = steps + more, count + others
    return steps, count


def _prepend_step(node: nodes.For | nodes.Macro | nodes.CallBlock, steps: int) -> None:
    node.body.insert(0, nodes.ExprStmt(_python(f"budget.step({steps})"), lineno=node.lineno))


def _python(source: str) -> nodes.Expr:
    """An expression that stands in the compiled template as it is written here; the way of Jinja's own parser."""
    node = object.__new__(nodes.InternalName)
    nodes.Node.__init__(node, source)
    return node


def _is_constant(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, _CONSTANTS)


def _forbidden(tag: str) -> Any:
    def visit(self: CodeGenerator, node: nodes.Node, frame: Frame) -> None:
        self.writeline(f"budget.forbid({tag!r})", node)

    return visit


class _Generator(CodeGenerator):
    """Jinja's compiler; where it writes a Python operator whose cost depends on the values, this writes a call."""

    visit_Include = _forbidden("include")
    visit_Import = visit_FromImport = _forbidden("import")
    visit_Extends = _forbidden("extends")
    visit_Block = _forbidden("block")
    visit_ScopedEvalContextModifier = visit_EvalContextModifier = _forbidden("autoescape")

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("budget = context.budget")
        self.writeline("concat = budget.concat")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("(shown if type(shown := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(") is str else budget.text(shown))")

    def _call(self, function: str, arguments: Iterable[nodes.Node], frame: Frame) -> None:
        self.write(f"budget.{function}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        terms: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            terms.append(left.right)
            left = left.left
        self._call("add", [left, *reversed(terms)], frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("join", node.nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if len(node.ops) > 1:
            return self._compare_chain(node, frame)
        operator, right = node.ops[0].op, node.ops[0].expr
        if operator in _SIGNS and (_is_constant(node.expr) or _is_constant(right)):
            return super().visit_Compare(node, frame)
        if operator in _SIGNS:
            return self._call("compare", [_python(repr(operator)), node.expr, right], frame)
        if isinstance(right, nodes.List | nodes.Tuple) and all(map(_is_constant, right.items)):
            return super().visit_Compare(node, frame)
        self.write("(not " if operator == "notin" else "(")
        self._call("within", [node.expr, right], frame)
        return self.write(")")

    def _compare_chain(self, node: nodes.Compare, frame: Frame) -> None:
        """`a < b < c`; only comparisons of values, since a chain with `in` means nothing in a template."""
        if any(operand.op not in _SIGNS for operand in node.ops):
            self.fail("`in` within a chain of comparisons", node.lineno)
        self.write("(")
        self._call("seen", [node.expr], frame)
        for operand in node.ops:
            self.write(f" {_SIGNS[operand.op]} ")
            self._call("seen", [operand.expr], frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            return super().visit_Getitem(node, frame)
        none = nodes.Const(None)
        part = [node.arg.start or none, node.arg.stop or none, node.arg.step or none]
        return self._call("cut", [node.node, *part], frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for item in node.items:
            self.visit(item.key, frame) if _is_constant(item.key) else self._call("key", [item.key], frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

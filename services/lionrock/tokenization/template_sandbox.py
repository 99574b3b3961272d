"""The Jinja environment in which chat templates run.

A template is code from a stranger's model file. It runs in Jinja's immutable sandbox with only the filters and string methods
that chat templates use, every string and list that it builds is bounded, and every turn of a loop and every call of a macro is
counted and looks at the clock. Its own literals are labelled (traced_text.py) by rewriting the parsed template. Rendering is
otherwise that of transformers' `apply_chat_template`: trim_blocks, lstrip_blocks, loop controls, `{% generation %}`, `tojson`
without HTML escapes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lionrock.tokenization.template_values import FlatNamespace, TemplateBoundReached, WeighedList, weighed, weighed_list, weight_of
from lionrock.tokenization.traced_text import TracedText, concatenate

MAX_RENDERED_CHARS = 4_000_000
MAX_OPERATIONS = 4_000
MAX_STEPS = 200_000
MAX_RENDER_S = 2.0
MAX_JSON_INDENT = 8

# Names that no template can spell.
STEP = "0step"
WEIGHED = "0weighed"

# fmt: off
_FILTERS = frozenset(
    {
        "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "lower",
        "round", "title", "trim", "upper",
    }
)
# fmt: on
_METERED_FILTERS = frozenset({"map", "reject", "rejectattr", "select", "selectattr"})
# fmt: off
_STR_METHODS = frozenset(
    {
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit", "islower",
        "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "title", "upper",
    }
)
# fmt: on
_DICT_METHODS = frozenset({"get", "items", "keys", "values"})
_SEQUENCE_METHODS = frozenset({"count", "index"})


class Meter:
    """Counts the steps of one rendering."""

    def __init__(self) -> None:
        self._left = MAX_STEPS
        self._until = time.monotonic() + MAX_RENDER_S

    def step(self) -> bool:
        """Count one step and return True. Raises TemplateBoundReached."""
        self._left -= 1
        if self._left < 0 or time.monotonic() > self._until:
            raise TemplateBoundReached("too many steps")
        return True


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks an assistant's words for training and prints its body here."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse to the body alone."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """One environment a template: it holds the template's literals."""

    intercepted_binops = frozenset({"+", "*", "**", "%", "/", "//", "-"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.filters = {name: FILTERS[name] for name in _FILTERS}
        self.filters |= {name: _metered(FILTERS[name]) for name in _METERED_FILTERS}
        self.filters |= {"tojson": _to_json, "join": _join, "replace": _replace, "string": _string, "safe": _string, "list": _list}
        self.filters[WEIGHED] = weighed
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": FlatNamespace}
        self.concat = concatenate  # type: ignore[method-assign]
        self.template_literals: list[TracedText] = []

    def load(self, source: str) -> Callable[[Mapping[str, Any]], Any]:
        """Compile a template to a function that renders it piecewise. Raises jinja2.TemplateSyntaxError and its kind."""
        tree = self.parse(source)
        if sum(1 for _ in tree.find_all((nodes.Filter, nodes.Call, nodes.BinExpr, nodes.Concat, nodes.Compare))) > MAX_OPERATIONS:
            raise TemplateBoundReached("too many operations")
        self._rewrite(tree)
        template = self.template_class.from_code(self, self.compile(tree), self.make_globals(None))
        return lambda values: template.root_render_func(template.new_context(dict(values)))

    def _rewrite(self, node: nodes.Node) -> None:
        """Label literals, turn `~` into labelled concatenation, and count loops and macros; below `node`, in place."""
        for name, value in list(node.iter_fields()):
            if isinstance(value, list):
                setattr(node, name, [self._rewritten(item, node, name) for item in value])
            elif isinstance(value, nodes.Node):
                setattr(node, name, self._rewritten(value, node, name))
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            node.body.insert(0, nodes.ExprStmt(_step()).set_lineno(node.lineno, override=True))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(_step(), node.test).set_lineno(node.lineno, override=True)

    def _rewritten(self, node: Any, parent: nodes.Node, field: str) -> Any:
        if isinstance(node, nodes.Const | nodes.TemplateData):
            text = node.data if isinstance(node, nodes.TemplateData) else node.value
            if not isinstance(text, str) or (isinstance(parent, nodes.Getitem) and field == "arg"):
                return node
            self.template_literals.append(TracedText.literal(text))
            index = nodes.Const(len(self.template_literals) - 1)
            literals = nodes.EnvironmentAttribute("template_literals")
            return nodes.Getitem(literals, index, "load").set_lineno(node.lineno, override=True)
        if not isinstance(node, nodes.Node):
            return node
        self._rewrite(node)
        if isinstance(node, nodes.Concat):
            strings = [nodes.Filter(part, "string", [], [], None, None) for part in node.nodes]
            total: nodes.Expr = strings[0]
            for part in strings[1:]:
                total = nodes.Add(total, part)
            return total.set_lineno(node.lineno, override=True)
        if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return nodes.Filter(node, WEIGHED, [], [], None, None).set_lineno(node.lineno, override=True)
        return node

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute with bounds: numbers stay small, and strings and lists grow by `+` alone."""
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            if weight_of(left) + weight_of(right) > MAX_RENDERED_CHARS:
                raise TemplateBoundReached("a value grew too large")
            if isinstance(left, WeighedList) and isinstance(right, WeighedList):
                total = WeighedList([*left, *right])
                total.weight = left.weight + right.weight
                return total
            return weighed(left + right)  # type: ignore[operator]
        if operator == "**" or not all(isinstance(operand, int | float) and abs(operand) < 1 << 31 for operand in (left, right)):
            raise SecurityError("operator used on values that templates may not compute with")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow only the methods that chat templates need."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, Mapping):
            return attr in _DICT_METHODS
        if isinstance(obj, list | tuple):
            return attr in _SEQUENCE_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Offer no str.format, which Jinja would allow without asking `is_safe_attribute`: a width in it takes any memory."""

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call, with the methods that can grow a string bounded first."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and args:
            if obj.__name__ == "replace":
                return _replace(owner, *args)  # kwargs are Jinja's own: str.replace has none
            if obj.__name__ == "join":
                return _join(context, args[0], owner)
        return weighed(super().call(context, obj, *args, **kwargs))


def _step() -> nodes.Call:
    return nodes.Call(nodes.Name(STEP, "load"), [], [], None, None)


def _steps(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    step = context.resolve(STEP)
    for value in values:
        step()
        yield value


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Count what goes into a filter that Jinja hands the context."""

    @pass_context
    def metered(context: Context, value: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        return function(context, _steps(context, value), *args, **kwargs)

    return metered


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= int(indent) <= MAX_JSON_INDENT:
        raise TemplateBoundReached("indentation too large")
    pair = None if separators is None else (str(separators[0])[:8], str(separators[1])[:8])
    return json.dumps(value, ensure_ascii=bool(ensure_ascii), indent=indent, separators=pair, sort_keys=bool(sort_keys))


def _string(value: Any) -> str:
    text = value if isinstance(value, str) else str(weighed(value))
    if len(text) > MAX_RENDERED_CHARS:
        raise TemplateBoundReached("a value grew too large")
    return text


@pass_context
def _list(context: Context, value: Iterable[Any]) -> WeighedList:
    return weighed_list(_steps(context, value))


@pass_context
def _join(context: Context, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> TracedText:
    if attribute is not None:
        raise SecurityError("join by attribute is not offered")
    parts = weighed_list(_string(part) for part in _steps(context, value))
    separator = _string(d)
    if parts.weight + len(separator) * len(parts) > MAX_RENDERED_CHARS:
        raise TemplateBoundReached("a value grew too large")
    return TracedText.join_with(separator, parts)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, limit = _string(value), -1 if count is None else int(count)
    if not isinstance(old, str) or not isinstance(new, str):
        raise SecurityError("replace takes strings")
    if len(text) + text.count(old) * max(0, len(new) - len(old)) > MAX_RENDERED_CHARS:
        raise TemplateBoundReached("a value grew too large")
    return text.replace(old, new, limit) if isinstance(text, TracedText) else TracedText(text).replace(old, new, limit)

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lionrock.tokenization.traced_text import TracedText, concatenate

MAX_RENDERED_CHARS = 4_000_000
MAX_LIST_ITEMS = 100_000
MAX_STEPS = 200_000
MAX_RENDER_S = 2.0
MAX_JSON_INDENT = 8

# A name that no template can spell.
STEP = "0step"

# fmt: off
_FILTERS = frozenset(
    {
        "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last",
        "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "select",
        "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
    }
)
# fmt: on
_GLOBALS = ("range", "dict", "namespace")
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


class TemplateBoundReached(SecurityError):
    """The template built or did more than it may."""


class Meter:
    """Counts the steps of one rendering."""

    def __init__(self) -> None:
        self._left = MAX_STEPS
        self._until = time.monotonic() + MAX_RENDER_S

    def step(self) -> str:
        """Count one step. Raises TemplateBoundReached."""
        self._left -= 1
        if self._left < 0 or time.monotonic() > self._until:
            raise TemplateBoundReached("too many steps")
        return ""


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
        self.filters = {name: FILTERS[name] for name in FILTERS if name in _FILTERS}
        self.filters |= {"tojson": _to_json, "join": _join, "replace": _replace, "string": _string, "safe": _string}
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        self.concat = concatenate  # type: ignore[method-assign]
        self.template_literals: list[TracedText] = []

    def load(self, source: str) -> Callable[[Mapping[str, Any]], Any]:
        """Compile a template to a function that renders it piecewise. Raises jinja2.TemplateSyntaxError and its kind."""
        tree = self.parse(source)
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
            call = nodes.Call(nodes.Name(STEP, "load"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno, override=True))

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
        return node

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute with bounds: numbers stay small, and strings and lists grow by `+` alone."""
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            limit = MAX_RENDERED_CHARS if isinstance(left, str) else MAX_LIST_ITEMS
            if len(left) + len(right) > limit:
                raise TemplateBoundReached("a value grew too large")
        elif not all(isinstance(operand, int | float) and abs(operand) < 1 << 31 for operand in (left, right)):
            raise SecurityError("operator used on values that templates may not compute with")
        elif operator == "**":
            raise SecurityError("powers are not computed")
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

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call, with the methods that can grow a string bounded first."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and args:
            if obj.__name__ == "replace":
                return _replace(None, owner, *args, **kwargs)
            if obj.__name__ == "join":
                return _join(None, args[0], owner)
        return super().call(context, obj, *args, **kwargs)


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
    text = value if isinstance(value, str) else str(value)
    if len(text) > MAX_RENDERED_CHARS:
        raise TemplateBoundReached("a value grew too large")
    return text


@pass_eval_context
def _join(_: EvalContext | None, value: Any, d: Any = "", attribute: str | int | None = None) -> TracedText:
    if attribute is not None:
        raise SecurityError("join by attribute is not offered")
    parts = [_string(part) for part in value]
    if sum(map(len, parts)) + len(d) * len(parts) > MAX_RENDERED_CHARS:
        raise TemplateBoundReached("a value grew too large")
    return TracedText.join_with(d, parts)


@pass_eval_context
def _replace(_: EvalContext | None, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, limit = _string(value), -1 if count is None else int(count)
    if not isinstance(old, str) or not isinstance(new, str):
        raise SecurityError("replace takes strings")
    if len(text) + text.count(old) * max(0, len(new) - len(old)) > MAX_RENDERED_CHARS:
        raise TemplateBoundReached("a value grew too large")
    return text.replace(old, new, limit) if isinstance(text, TracedText) else TracedText(text).replace(old, new, limit)

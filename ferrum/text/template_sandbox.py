"""A jinja2 sandbox whose memory and time are bounded, for templates that came with a model.

jinja2's own sandbox keeps a template away from Python's internals but not from ``'a' * 10**9``. Here nothing can become
large: every operator, literal, call and filter result is weighed, so no text exceeds ``MAX_TEXT`` characters, no list or
dict weighs more than ``MAX_WEIGHT`` (characters, and ``ELEMENT_WEIGHT`` per element, counted again for each reference),
and all that one rendering makes not more than ``MAX_MADE``. Loops and calls look at a deadline. Filters that templates do
not need and that are hard to bound are gone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ferrum.text.template_bounds import (
    MAX_BITS,
    MAX_TEXT,
    MAX_WEIGHT,
    TemplateLimit,
    bounded_concat,
    check_time,
    made,
    ticking,
    weigh,
    weighed,
)

MAX_PARTS = 1 << 20
MAX_WIDTH = 9999  # the patterns below look for five digits
MAX_DATE_FORMAT = 64
MAX_FORMAT = 4096

_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_MANY_DIGITS = re.compile(r"\d{5}")
_PADDING = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
_FILTER_NAMES = """
    abs bool capitalize count d default dictsort e escape first float forceescape format indent int items join last length list
    lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim truncate
    unique upper wordcount
"""
FILTERS = frozenset(_FILTER_NAMES.split())
GLOBALS = frozenset({"range", "dict", "namespace"})


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """The environment of all chat templates. ``concat`` joins every buffer that a template fills."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(bounded_concat)

    def __init__(self) -> None:
        # optimized=False: constant expressions are evaluated at render time, under the bounds, not while compiling
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[GenerationTag, loopcontrols])
        self.filters = {name: _bounded_filter(name, f) for name, f in self.filters.items() if name in FILTERS}
        self.filters.update(
            tojson=_tojson, format=_format, indent=_indent, join=_join, replace=_replace, round=_round, sum=_sum,
            made=made, ticking=ticking, weighed=weighed,
        )  # fmt: skip
        self.globals = {name: value for name, value in self.globals.items() if name in GLOBALS}
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_TemplateDict(), namespace=_TemplateNamespace
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _guard(Parser(self, source, name, filename).parse())

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_time()
        if operator == "*":
            return _multiply(left, right)
        if operator == "**":
            return _power(left, right)
        if operator == "%" and isinstance(left, str):
            return _percent(left, right)
        if operator == "+" and not isinstance(left, (int, float)):
            weigh(left, MAX_WEIGHT - weigh(right))
        return made(self.binop_table[operator](left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            form: str = value.__self__
            if len(form) > MAX_FORMAT or _MANY_DIGITS.search(form) or re.search(r":[^}]*\{", form):
                raise TemplateLimit("a format is too wide")
        return wrapped

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        check_time()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _check_method(owner, name, args, kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, (list, tuple, dict, str)):
                weigh(value)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, (str, list, tuple, dict, int)) or type(result).__name__ in ("dict_items", "dict_values"):
            made(list(result) if type(result).__name__.startswith("dict_") else result)
        return result


class GenerationTag(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` of training templates: the body as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _guard(tree: nodes.Template) -> nodes.Template:
    """Put a weight on what operators cannot intercept: literals, ``~``, comparisons, output, and a clock into loops."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _filtered(loop.iter, "ticking")
    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [_filtered(n, "weighed") for n in joined.nodes]
    for compare in tree.find_all(nodes.Compare):
        compare.expr = _filtered(compare.expr, "weighed")
        for operand in compare.ops:
            operand.expr = _filtered(operand.expr, "weighed")
    for output in tree.find_all(nodes.Output):
        output.nodes = [n if isinstance(n, nodes.TemplateData) else _filtered(n, "weighed") for n in output.nodes]
    _replace_nodes(tree)
    return tree


def _replace_nodes(node: nodes.Node) -> None:
    """Below ``node``: literals are weighed when they are made, and ``a ~ b ~ c`` becomes weighed pairs."""
    for name in node.fields:
        value = getattr(node, name)
        if isinstance(value, list):
            setattr(node, name, [_replaced(v) if isinstance(v, nodes.Node) else v for v in value])
        elif isinstance(value, nodes.Node):
            setattr(node, name, _replaced(value))


def _replaced(node: nodes.Node) -> nodes.Node:
    _replace_nodes(node)
    if isinstance(node, nodes.Concat):
        result: nodes.Expr = node.nodes[0]
        for part in node.nodes[1:]:
            result = _filtered(nodes.Concat([result, part], lineno=node.lineno), "made")
        return result
    slices = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    if slices or isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filtered(node, "made")
    return node


def _filtered(node: Any, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its arguments and its result weighed; iterators stay lazy but tick."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        check_time()
        for value in args:
            if isinstance(value, (list, tuple, dict)):
                weigh(value)
            elif name in ("list", "sort", "unique") and isinstance(value, str) and len(value) > MAX_PARTS:
                raise TemplateLimit("a text is split into too many parts")
        result = function(*args, **kwargs)
        if isinstance(result, Iterator):
            return ticking(result)
        return made(result) if isinstance(result, (str, list, tuple, dict, int)) else result

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(bounded, mark, getattr(function, mark))
    return bounded


def _multiply(left: Any, right: Any) -> Any:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(count, int) and weigh(value) * max(count, 0) > MAX_TEXT:
            raise TemplateLimit("a repetition becomes too large")
    return made(left * right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 0) > MAX_BITS:
        raise TemplateLimit("a number becomes too large")
    return left**right


def _percent(text: str, values: Any) -> str:
    if _WIDE.search(text):
        raise TemplateLimit("a format is too wide")
    weigh(text, MAX_WEIGHT - weigh(values))
    if text.count("%") > MAX_FORMAT // 4:
        raise TemplateLimit("a format has too many fields")
    return str(made(text % values))


def _check_method(owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse string methods whose result could be large before they make it."""
    values = (*args, *kwargs.values())
    if name in _PADDING and any(isinstance(v, int) and v > MAX_WIDTH for v in values):
        raise TemplateLimit("a text is padded too far")
    if name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) else ""
        if (owner.count(separator) if separator else len(owner) // 2) > MAX_PARTS:
            raise TemplateLimit("a text is split into too many parts")
    if name == "replace" and len(args) >= 2 and all(isinstance(v, str) for v in args[:2]):
        _check_replace(owner, args[0], args[1])
    if name == "join" and args:
        if not isinstance(args[0], (list, tuple, str, dict)):
            raise TemplateLimit("join takes a list")
        if len(owner) * len(args[0]) + weigh(args[0]) > MAX_TEXT:
            raise TemplateLimit("a text becomes too long")
    if name == "translate":
        raise TemplateLimit("translate is not available")


def _check_replace(text: str, old: str, new: str) -> None:
    if len(text) + text.count(old) * len(new) > MAX_TEXT:
        raise TemplateLimit("a text becomes too long")


# ---- filters and globals that templates written for transformers expect


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: no HTML escapes."""
    if isinstance(value, Undefined):
        raise jinja2.UndefinedError("an undefined value cannot be written as JSON")
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16):
        raise TemplateLimit("JSON is indented too far")
    weigh(value, MAX_WEIGHT // (indent or 1))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return str(made(text))


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    return _percent(str(value), kwargs or args)


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    texts = []
    total = 0
    for item in value:
        check_time()
        if attribute is not None:
            item = item.get(attribute, "") if isinstance(item, Mapping) else ""
        text = str(weighed(item))
        total += len(text) + len(d)
        if total > MAX_TEXT:
            raise TemplateLimit("a text becomes too long")
        texts.append(text)
    return str(made(str(d).join(texts)))


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _check_replace(text, old, new)
    return str(made(text.replace(old, new, -1 if count is None else count)))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """As jinja2's, bounded."""
    pad = width if isinstance(width, str) else " " * min(width, MAX_WIDTH)
    if len(text) + (text.count("\n") + 1) * len(pad) > MAX_TEXT:
        raise TemplateLimit("a text becomes too long")
    lines = (text + "\n").splitlines()
    rest = [pad + line if line or blank else line for line in lines[1:]]
    return str(made((pad if first else "") + "\n".join([*lines[:1], *rest])))


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if method not in ("common", "ceil", "floor") or not -32 <= precision <= 32:
        raise TemplateLimit("a number is rounded too finely")
    if method == "common":
        return round(value, precision)
    return float((math.ceil if method == "ceil" else math.floor)(value * 10**precision) / 10**precision)


def _sum(values: Iterable[Any], attribute: str | None = None, start: float = 0) -> float:
    """Numbers only: jinja2's would join lists, again and again."""
    total = start
    for value in values:
        check_time()
        number = value.get(attribute, 0) if attribute is not None and isinstance(value, Mapping) else value
        if not isinstance(number, (int, float)) or not isinstance(total, (int, float)):
            raise TemplateLimit("sum takes numbers")
        total = weighed(total + number)
    return total


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateRefusal(str(message)[:200])


class TemplateRefusal(jinja2.TemplateError):
    """The template called ``raise_exception``: the conversation does not fit the model."""


def _strftime_now(form: str) -> str:
    if len(form) > MAX_DATE_FORMAT or _WIDE.search(form):
        raise TemplateLimit("a date format is too long")
    return datetime.now().strftime(form)


class _TemplateDict:
    """``dict`` without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _TemplateNamespace(Namespace):
    """jinja2's ``namespace`` that takes no private names, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: B902, N805
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        Namespace.__setitem__(self, name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace takes no private names")

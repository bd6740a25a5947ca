"""The text form of parameter expressions, as it stands inside of ``from(..)`` in a graph's text.

::

    q.weight[64, 24]                                             a tensor of floats
    qweight: i32[8, 64]                                          a tensor of another type
    rows(qkv.weight[96, 24], axis=0, start=0, stop=64, step=1)
    cat(q.weight[64, 24], k.weight[32, 24], axis=0)              stack(..), reshape(.., shape=(4, 6)), permute(.., order=(1, 0))
    map(norm.weight[24], function="add", value=1.0)
    factors(v.weight[4, 24], axis=0, quarters="a0BB")            rows times 2 ** (1 / 4), 1, 2 ** (-2 / 4) and the same again
    dequant(w: u8[64, 34], scheme="q8", size=32)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.graphs.expressions import expression as e
from ferrum.graphs.expressions.schemes import SCHEMES, scheme_of
from ferrum.graphs.lines import Line, parse_attr, print_attr, quote

DEEPEST = 64  # expressions inside of each other


@dataclass(frozen=True)
class Form:
    """How a kind of expression is written: its attributes in order, with their types, and how one is made of inputs and them."""

    attrs: Mapping[str, type]
    make: Callable[..., e.Expr]
    single: bool = True


def _dequant(parts: tuple[e.Expr, ...], scheme: str, size: int) -> e.Expr:
    found = scheme_of(scheme, size)
    e.check(found is not None, f"a scheme, one of {', '.join(SCHEMES)}")
    assert found is not None
    return e.Dequant(found, parts)


FORMS: Mapping[str, Form] = {
    "rows": Form({"axis": int, "start": int, "stop": int, "step": int}, e.Rows),
    "cat": Form({"axis": int}, e.Cat, single=False),
    "stack": Form({}, e.Stack, single=False),
    "reshape": Form({"shape": tuple}, e.Reshape),
    "permute": Form({"order": tuple}, e.Permute),
    "map": Form({"function": str, "value": float}, e.Map),
    "factors": Form({"axis": int, "quarters": str}, e.Factors),
    "dequant": Form({"scheme": str, "size": int}, _dequant, single=False),
}


def print_expression(expr: e.Expr) -> str:
    if isinstance(expr, e.Tensor):
        dims = f"[{', '.join(map(str, expr.shape))}]"
        return quote(expr.name) + (dims if expr.dtype == "f32" else f": {quote(expr.dtype)}{dims}")
    name = type(expr).__name__.lower()
    if isinstance(expr, e.Dequant):
        values: dict[str, Any] = {"scheme": expr.scheme.name, "size": expr.scheme.size}
    else:
        values = {key: getattr(expr, key) for key in FORMS[name].attrs}
    listed = [print_expression(part) for part in e.inputs(expr)]
    return f"{name}({', '.join([*listed, *(f'{key}={print_attr(value)}' for key, value in values.items())])})"


def parse_expression(line: Line, depth: int = 0) -> e.Expr:
    """An expression from its text. Raises FerrumError (graph-text); types are not checked here."""
    if depth > DEEPEST:
        raise line.fault(f"at most {DEEPEST} expressions inside of each other")
    at = line.at
    name = line.string("an expression")
    if not line.take("("):
        dtype = line.string("a dtype") if line.take(":") else "f32"
        return e.Tensor(name, _dims(line), dtype)
    if name not in FORMS:
        line.at = at
        raise line.fault("one of " + ", ".join(FORMS))
    form = FORMS[name]
    parts: list[e.Expr] = []
    attrs: dict[str, Any] = {}
    while not line.take(")"):
        if parts or attrs:
            line.expect(",")
        key = _key(line, form, attrs)
        if key:
            attrs[key] = _attr(line, form.attrs[key])
        else:
            parts.append(parse_expression(line, depth + 1))
    if set(attrs) != set(form.attrs) or (form.single and len(parts) != 1):
        raise line.fault(f"{name} with {'one expression' if form.single else 'expressions'} and {', '.join(form.attrs)}")
    try:
        return form.make(parts[0] if form.single else tuple(parts), **attrs)
    except e.ExpressionFault as fault:
        raise line.fault(str(fault)) from None


def _key(line: Line, form: Form, known: Mapping[str, Any]) -> str:
    """The attribute that comes next; empty when it is an expression."""
    at = line.at
    name = line.string("an expression or an attribute")
    if line.take("="):
        if name not in form.attrs or name in known:
            raise line.fault(f"one of {', '.join(form.attrs)}, each once")
        return name
    line.at = at
    return ""


def _attr(line: Line, kind: type) -> Any:
    value = parse_attr(line)
    whole = not isinstance(value, tuple) or all(isinstance(item, int) for item in value)
    if type(value) is not kind or not whole:
        raise line.fault({int: "an integer", float: "a number", str: "a name", tuple: "integers"}[kind])
    return value


def _dims(line: Line) -> tuple[int, ...]:
    line.expect("[")
    dims: list[int] = []
    while not line.take("]"):
        if dims:
            line.expect(",")
        dims.append(line.integer("an integer dim"))
    return tuple(dims)

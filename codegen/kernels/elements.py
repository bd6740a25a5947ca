"""One element of a map as statements that C, CUDA and Metal read alike: the body of an IR region, an operation a line.

Functions are those of ``templates/common/elements.h``. A value is a ``float`` or an ``int``: numbers of all integer types are 32
bits wide, and what is true is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ferrum.codegen.kernels.base import c_float
from ferrum.graphs.ir import Node, Region

_INT_MAX = 2**31 - 1

# op -> a C expression of its inputs, for floats; ``{value}`` is the attribute.
FLOATS: Mapping[str, str] = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}", "reciprocal": "1.0f / {0}",
    "add_scalar": "{0} + {value}", "mul_scalar": "{0} * {value}", "abs": "el_abs({0})", "floor": "el_floor({0})",
    "sqrt": "el_sqrt({0})", "rsqrt": "1.0f / el_sqrt({0})", "exp": "el_exp({0})", "log": "el_log({0})", "log1p": "el_log1p({0})",
    "expm1": "el_expm1({0})", "cos": "el_cos({0})", "sin": "el_sin({0})", "tanh": "el_tanh({0})", "erf": "el_erf({0})",
    "sigmoid": "el_sigmoid({0})", "silu": "el_silu({0})", "gelu": "el_gelu({0})", "gelu_tanh": "el_gelu_tanh({0})",
    "maximum": "el_max({0}, {1})", "minimum": "el_min({0}, {1})", "pow": "el_pow({0}, {1})",
    "floor_divide": "el_floor({0} / {1})", "remainder": "el_mod({0}, {1})",
}  # fmt: skip
INTS: Mapping[str, str] = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "neg": "-{0}", "add_scalar": "{0} + {value}",
    "mul_scalar": "{0} * {value}", "pow_scalar": "el_pow_int({0}, {value})", "abs": "el_abs_int({0})",
    "maximum": "el_max_int({0}, {1})", "minimum": "el_min_int({0}, {1})", "pow": "el_pow_int({0}, {1})",
    "floor_divide": "el_floor_div_int({0}, {1})", "remainder": "el_mod_int({0}, {1})",
}  # fmt: skip
EITHER: Mapping[str, str] = {
    "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}", "eq": "{0} == {1}", "ne": "{0} != {1}",
    "and": "{0} && {1}", "or": "{0} || {1}", "not": "!{0}", "where": "{0} ? {1} : {2}",
}  # fmt: skip
_POWERS = {
    1.0: "{0}", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}", 0.5: "el_sqrt({0})", -0.5: "1.0f / el_sqrt({0})", -1.0: "1.0f / {0}",
}  # fmt: skip


def c_type(dtype: str) -> str:
    return "float" if dtype == "f32" else "int"


def literal(value: float, dtype: str) -> str:
    """A number as a constant of the type."""
    if dtype != "f32":
        return str(max(-_INT_MAX, min(_INT_MAX, int(value)))) if dtype != "bool" else str(int(bool(value)))
    if value != value:
        return "el_nan()"
    if value in (float("inf"), float("-inf")):
        return "el_infinity()" if value > 0 else "-el_infinity()"
    return f"{c_float(value)}f" if value >= 0 else f"({c_float(value)}f)"


def expression(node: Node, inputs: Sequence[str], dtype: str) -> str:
    """``node`` as C; ``inputs`` are names, ``dtype`` is the type of the first input."""
    value = node.attrs.get("value", 0.0)
    assert isinstance(value, int | float)
    match node.op:
        case "full":
            return literal(float(value), node.output.dtype)
        case "cast":
            return _cast(inputs[0], dtype, node.output.dtype)
        case "pow_scalar" if dtype == "f32":
            return _POWERS.get(float(value), "el_pow({0}, {value})").format(*inputs, value=literal(float(value), "f32"))
        case "div" if dtype != "f32":
            return f"(float){inputs[0]} / (float){inputs[1]}"
    spelled = EITHER.get(node.op) or (FLOATS if dtype == "f32" else INTS)[node.op]
    return spelled.format(*inputs, value=literal(float(value), dtype))


def _cast(name: str, source: str, target: str) -> str:
    if target == "bool":
        return f"{name} != 0"
    return name if c_type(source) == c_type(target) else f"({c_type(target)}){name}"


def statements(region: Region, inputs: Sequence[str]) -> Iterator[str]:
    """Definitions in order; ``inputs``: C expressions of the region's inputs, each of which is read once."""
    names: dict[str, str] = {}
    dtypes = {value.name: value.dtype for value in region.inputs}
    for number, (value, text) in enumerate(zip(region.inputs, inputs, strict=True)):
        names[value.name] = f"x{number}"
        yield f"const {c_type(value.dtype)} x{number} = {text};"
    for number, node in enumerate(region.nodes):
        name = names[node.output.name] = f"v{number}"
        dtypes[node.output.name] = node.output.dtype
        first = dtypes[node.inputs[-1] if node.op == "where" else node.inputs[0]] if node.inputs else node.output.dtype
        text = expression(node, [names[i] for i in node.inputs], first)
        yield f"const {c_type(node.output.dtype)} {name} = {text};"


def result(region: Region) -> str:
    """The name that ``statements`` gives to the region's output."""
    names = {value.name: f"x{number}" for number, value in enumerate(region.inputs)}
    names |= {node.output.name: f"v{number}" for number, node in enumerate(region.nodes)}
    return names[region.outputs[0]]

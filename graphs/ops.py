"""The legal operations of the graph: one literal table of arity, attributes and dtype/shape inference.

``OPS`` is the specification that the verifier, the text form, the interpreter and every pass share. An ``infer``
function gets the input values, the attributes and the declared output (``None`` while a node is being built) and
returns the output's dtype and shape, or raises ``OpFault``. Only ``reshape``, ``expand``, ``full``, ``iota`` and ``cast``
read the declared output: their result is not a function of the inputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ferrum.graphs.ir import Attr, Dim, Shape, Value

Inputs: TypeAlias = tuple[Value, ...]
Attrs: TypeAlias = Mapping[str, Attr]
Typed: TypeAlias = tuple[str, Shape]
Infer: TypeAlias = Callable[[Inputs, Attrs, Value | None], Typed]

# act(gate) * up, by the op that computes act
GATES: Mapping[str, str] = {"silu_mul": "silu", "gelu_mul": "gelu", "gelu_tanh_mul": "gelu_tanh"}
ACTIVATIONS = ("", *GATES)


class OpFault(ValueError):
    """An operation that breaks its specification; the text says how."""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One operation: how many inputs, which attributes (name → kind: int, float, bool, str, ints), and its result.

    ``paged`` marks the operations that the finished graph may contain.
    """

    inputs: tuple[int, int]
    infer: Infer
    attrs: Mapping[str, str] = field(default_factory=dict)
    paged: bool = False


def integer(attrs: Attrs, name: str) -> int:
    value = attrs[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise OpFault(f"attribute {name} must be an int")
    return value


def axes(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    if not isinstance(value, tuple) or not all(isinstance(item, int) for item in value):
        raise OpFault(f"attribute {name} must be a tuple of ints")
    return tuple(int(item) for item in value)


def need(condition: bool, fault: str) -> None:
    if not condition:
        raise OpFault(fault)


def broadcast(a: Shape, b: Shape) -> Shape:
    """The broadcast of two shapes, aligned at the right as in numpy."""
    rank = max(len(a), len(b))
    left: Shape = (1,) * (rank - len(a)) + a
    right: Shape = (1,) * (rank - len(b)) + b
    out: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        need(x == y or x == 1 or y == 1, f"shapes {list(a)} and {list(b)} do not broadcast")
        out.append(y if x == 1 else x)
    return tuple(out)


def count(shape: Shape) -> tuple[int, tuple[str, ...]]:
    """Number of elements: the product of the fixed dims and the sorted symbolic ones (``tokens`` is batch times seq)."""
    names = [name for dim in shape if isinstance(dim, str) for name in (("batch", "seq") if dim == "tokens" else (dim,))]
    return math.prod(dim for dim in shape if isinstance(dim, int)), tuple(sorted(names))


def axis_of(attrs: Attrs, shape: Shape, name: str = "axis") -> int:
    axis = integer(attrs, name)
    need(0 <= axis < len(shape), f"{name} {axis} is outside of rank {len(shape)}")
    return axis


def declared_shape(declared: Value | None) -> Value:
    if declared is None:
        raise OpFault("needs a declared output")
    return declared


def same(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    return x[0].dtype, x[0].shape


def floating(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[0].dtype == "f32", f"needs a float input, not {x[0].dtype}")
    return x[0].dtype, x[0].shape


def elementwise(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[0].dtype == x[1].dtype, f"dtypes {x[0].dtype} and {x[1].dtype} differ")
    return x[0].dtype, broadcast(x[0].shape, x[1].shape)


def compare(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    return "bool", elementwise(x, a, d)[1]


def logical(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need({v.dtype for v in x} == {"bool"}, "needs bool inputs")
    return "bool", broadcast(x[0].shape, x[-1].shape)


def where(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[0].dtype == "bool", "the condition must be bool")
    need(x[1].dtype == x[2].dtype, f"dtypes {x[1].dtype} and {x[2].dtype} differ")
    return x[1].dtype, broadcast(x[0].shape, broadcast(x[1].shape, x[2].shape))


def cast(x: Inputs, _: Attrs, declared: Value | None) -> Typed:
    return declared_shape(declared).dtype, x[0].shape


def constant(_: Inputs, __: Attrs, declared: Value | None) -> Typed:
    value = declared_shape(declared)
    return value.dtype, value.shape


def iota(_: Inputs, __: Attrs, declared: Value | None) -> Typed:
    value = declared_shape(declared)
    need(len(value.shape) == 1, "the output must have one axis")
    need(value.dtype in ("i32", "i64"), f"the output must be an integer, not {value.dtype}")
    return value.dtype, value.shape


def reshape(x: Inputs, _: Attrs, declared: Value | None) -> Typed:
    value = declared_shape(declared)
    need(count(value.shape) == count(x[0].shape), f"{list(x[0].shape)} and {list(value.shape)} have unequal numbers of elements")
    return x[0].dtype, value.shape


def expand(x: Inputs, _: Attrs, declared: Value | None) -> Typed:
    value = declared_shape(declared)
    need(broadcast(x[0].shape, value.shape) == value.shape, f"{list(x[0].shape)} does not expand to {list(value.shape)}")
    return x[0].dtype, value.shape


def permute(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    order = axes(a, "order")
    need(sorted(order) == list(range(len(x[0].shape))), f"order {order} is not a permutation of {len(x[0].shape)} axes")
    return x[0].dtype, tuple(x[0].shape[i] for i in order)


def slice_axis(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    axis, start, end = axis_of(a, x[0].shape), integer(a, "start"), integer(a, "end")
    size = x[0].shape[axis]
    need(isinstance(size, int), f"axis {axis} is symbolic ({size}) and cannot be sliced")
    need(isinstance(size, int) and 0 <= start < end <= size, f"slice {start}:{end} is outside of an axis of {size}")
    return x[0].dtype, (*x[0].shape[:axis], end - start, *x[0].shape[axis + 1 :])


def cat(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    axis = axis_of(a, x[0].shape)
    need(all(len(v.shape) == len(x[0].shape) for v in x), "inputs differ in rank")
    rest = [(v.dtype, v.shape[:axis], v.shape[axis + 1 :]) for v in x]
    need(all(r == rest[0] for r in rest), "inputs differ outside of the joined axis")
    sizes = [v.shape[axis] for v in x]
    total = sum(s for s in sizes if isinstance(s, int))
    need(all(isinstance(s, int) for s in sizes), "a symbolic axis cannot be joined")
    return x[0].dtype, (*x[0].shape[:axis], total, *x[0].shape[axis + 1 :])


def repeat(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    axis, times = axis_of(a, x[0].shape), integer(a, "times")
    size = x[0].shape[axis]
    if not isinstance(size, int) or times < 1:
        raise OpFault(f"cannot repeat an axis of {size} {times} times")
    return x[0].dtype, (*x[0].shape[:axis], size * times, *x[0].shape[axis + 1 :])


def reduce_axis(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    axis = axis_of(a, x[0].shape)
    need(x[0].dtype == "f32", f"needs a float input, not {x[0].dtype}")
    return x[0].dtype, (*x[0].shape[:axis], *((1,) if a["keepdim"] else ()), *x[0].shape[axis + 1 :])


def softmax(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    axis_of(a, x[0].shape)
    return floating(x, a, d)


def triangle(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    need(len(x[0].shape) >= 2, "needs two axes or more")
    return same(x, a, d)


def matmul(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    a, b = x[0].shape, x[1].shape
    need(len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2], f"{list(a)} and {list(b)} do not multiply")
    need(x[0].dtype == x[1].dtype == "f32", "needs f32 inputs")
    return "f32", (*broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def linear(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    activation = a["activation"]
    need(activation in ACTIVATIONS, f"activation {activation!r} is unknown")
    need(len(x) == 2 + bool(a["has_bias"]) + bool(a["has_residual"]), f"{len(x)} inputs do not fit has_bias and has_residual")
    weight = x[1].shape
    need(len(weight) == 2 and len(x[0].shape) >= 1, "the weight must have two axes")
    need(x[0].shape[-1] == weight[1], f"input of {x[0].shape[-1]} columns against a weight of {weight[1]}")
    rows = weight[0]
    if not isinstance(rows, int):
        raise OpFault("a weight has fixed dims")
    if activation:
        need(rows % 2 == 0, f"gate and up rows together must be even, not {rows}")
        rows //= 2
    if a["has_bias"]:
        need(x[2].shape == (weight[0],), f"bias {list(x[2].shape)} against {weight[0]} rows")
    out = (*x[0].shape[:-1], rows)
    if a["has_residual"]:
        need(x[-1].shape == out, f"residual {list(x[-1].shape)} against an output of {list(out)}")
    return "f32", out


def quantize(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    act = str(a["act"])
    return "q8" if act.startswith("q8") else act, x[0].shape


def embedding(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[0].dtype in ("i32", "i64"), f"tokens must be integers, not {x[0].dtype}")
    need(len(x[1].shape) == 2, "the table must have two axes")
    return x[1].dtype, (*x[0].shape, x[1].shape[1])


def rms_norm(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    need(x[1].shape == x[0].shape[-1:], f"weight {list(x[1].shape)} against rows of {x[0].shape[-1]}")
    return floating(x, a, d)


def layer_norm(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    need(len(x) == 2 + bool(a["has_bias"]), f"{len(x)} inputs do not fit has_bias")
    for name, value in zip(("weight", "bias"), x[1:], strict=False):
        need(value.shape == x[0].shape[-1:], f"{name} {list(value.shape)} against rows of {x[0].shape[-1]}")
    return floating(x, a, d)


def rope(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    axis, width = axis_of(a, x[0].shape, "seq_axis"), integer(a, "rope_dim")
    last = x[0].shape[-1]
    need(axis < len(x[0].shape) - 1, "positions run along an axis before the last")
    need(isinstance(last, int) and 0 < width <= last and width % 2 == 0, f"rope_dim {width} against rows of {last}")
    need(x[1].shape == (width // 2,), f"inv_freq {list(x[1].shape)} against rope_dim {width}")
    return floating(x, a, d)


def heads(q: Value, k: Value, v: Value, axis: int) -> None:
    need(len(q.shape) == len(k.shape) == 4 and k.shape == v.shape, f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}")
    need(q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3], f"q {list(q.shape)} against k {list(k.shape)}")
    h, g = q.shape[axis], k.shape[axis]
    need(isinstance(h, int) and isinstance(g, int) and h % g == 0, f"{h} heads over {g} kv heads")


def sdpa(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    heads(x[0], x[1], x[2], 1)
    if len(x) == 4:
        need(not a["is_causal"], "a mask and is_causal exclude each other")
        need(x[3].dtype in ("bool", "f32"), f"mask of {x[3].dtype}")
        scores = (*x[0].shape[:3], x[1].shape[2])
        need(broadcast(x[3].shape, scores) == scores, f"mask {list(x[3].shape)} against scores {list(scores)}")
    return x[0].dtype, x[0].shape


def attention(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    heads(x[0], x[1], x[2], 2)
    need(integer(a, "window") >= 0, "window must be 0 (none) or positive")
    return x[0].dtype, x[0].shape


def gated(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    need(a["activation"] in GATES, f"activation {a['activation']!r} is unknown")
    need(x[0].dtype == x[1].dtype == "f32" and x[0].shape == x[1].shape, "gate and up must agree")
    return x[0].dtype, x[0].shape


def paged_attention(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    hq, hkv, d = integer(a, "num_heads"), integer(a, "num_kv_heads"), integer(a, "head_dim")
    rope_dim = integer(a, "rope_dim")
    need(hq > 0 and hkv > 0 and d > 0 and hq % hkv == 0, f"{hq} heads of {d} over {hkv} kv heads")
    width = (hq + 2 * hkv) * d
    need(len(x[0].shape) == 2 and x[0].shape[1] == width, f"qkv {list(x[0].shape)} against {width} columns")
    need(0 <= rope_dim <= d and rope_dim % 2 == 0, f"rope_dim {rope_dim} against head_dim {d}")
    need(x[1].shape == (rope_dim // 2,), f"inv_freq {list(x[1].shape)} against rope_dim {rope_dim}")
    need(integer(a, "layer") >= 0 and integer(a, "window") >= 0, "layer and window must not be negative")
    need(len(x) == (4 if a["qk_norm"] else 2), f"{len(x)} inputs do not fit qk_norm")
    need(all(v.shape == (d,) for v in x[2:]), f"q and k norm weights must have {d} elements")
    return x[0].dtype, (x[0].shape[0], hq * d)


def gather_rows(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[1].dtype in ("i32", "i64") and len(x[1].shape) == 1, "row numbers must be a vector of integers")
    return x[0].dtype, (*x[1].shape, *x[0].shape[1:])


VALUE = {"value": "float"}
AXIS = {"axis": "int"}
REDUCE = {"axis": "int", "keepdim": "bool"}
LINEAR = {"has_bias": "bool", "has_residual": "bool", "activation": "str"}
PAGED_ATTENTION = {
    "layer": "int",
    "num_heads": "int",
    "num_kv_heads": "int",
    "head_dim": "int",
    "scale": "float",
    "window": "int",
    "rope_scale": "float",
    "rope_dim": "int",
    "qk_norm": "bool",
    "eps": "float",
}

OPS: Mapping[str, OpSpec] = {
    # sources
    "full": OpSpec((0, 0), constant, VALUE),
    "iota": OpSpec((0, 0), iota, {"start": "int", "step": "int"}),
    # one by one
    "add": OpSpec((2, 2), elementwise),
    "sub": OpSpec((2, 2), elementwise),
    "mul": OpSpec((2, 2), elementwise),
    "div": OpSpec((2, 2), elementwise),
    "add_scalar": OpSpec((1, 1), same, VALUE),
    "mul_scalar": OpSpec((1, 1), same, VALUE),
    "pow_scalar": OpSpec((1, 1), same, VALUE),
    "neg": OpSpec((1, 1), same),
    "reciprocal": OpSpec((1, 1), floating),
    "sqrt": OpSpec((1, 1), floating),
    "rsqrt": OpSpec((1, 1), floating),
    "exp": OpSpec((1, 1), floating),
    "cos": OpSpec((1, 1), floating),
    "sin": OpSpec((1, 1), floating),
    "sigmoid": OpSpec((1, 1), floating),
    "silu": OpSpec((1, 1), floating),
    "gelu": OpSpec((1, 1), floating),
    "gelu_tanh": OpSpec((1, 1), floating),
    "cast": OpSpec((1, 1), cast),
    "lt": OpSpec((2, 2), compare),
    "le": OpSpec((2, 2), compare),
    "gt": OpSpec((2, 2), compare),
    "ge": OpSpec((2, 2), compare),
    "eq": OpSpec((2, 2), compare),
    "ne": OpSpec((2, 2), compare),
    "and": OpSpec((2, 2), logical),
    "or": OpSpec((2, 2), logical),
    "not": OpSpec((1, 1), logical),
    "where": OpSpec((3, 3), where),
    "tril": OpSpec((1, 1), triangle, {"diagonal": "int"}),
    "triu": OpSpec((1, 1), triangle, {"diagonal": "int"}),
    # form
    "reshape": OpSpec((1, 1), reshape),
    "expand": OpSpec((1, 1), expand),
    "permute": OpSpec((1, 1), permute, {"order": "ints"}),
    "slice": OpSpec((1, 1), slice_axis, {"axis": "int", "start": "int", "end": "int"}),
    "cat": OpSpec((1, 64), cat, AXIS),
    "repeat": OpSpec((1, 1), repeat, {"axis": "int", "times": "int"}),
    # along an axis
    "mean": OpSpec((1, 1), reduce_axis, REDUCE),
    "sum": OpSpec((1, 1), reduce_axis, REDUCE),
    "softmax": OpSpec((1, 1), softmax, AXIS),
    "matmul": OpSpec((2, 2), matmul),
    # scaled dot product on [batch, heads, seq, head_dim], then the same on [batch, seq, heads, head_dim], always causal
    "sdpa": OpSpec((3, 4), sdpa, {"is_causal": "bool", "scale": "float"}),
    "attention": OpSpec((3, 3), attention, {"scale": "float", "window": "int"}),
    "rope": OpSpec((2, 2), rope, {"seq_axis": "int", "rope_dim": "int", "rope_scale": "float"}),
    "gated": OpSpec((2, 2), gated, {"activation": "str"}),
    # the finished graph
    "embedding": OpSpec((2, 2), embedding, {"scale": "float"}, paged=True),
    "rms_norm": OpSpec((2, 2), rms_norm, {"eps": "float"}, paged=True),
    "layer_norm": OpSpec((2, 3), layer_norm, {"eps": "float", "has_bias": "bool"}, paged=True),
    "linear": OpSpec((2, 4), linear, LINEAR, paged=True),
    "paged_attention": OpSpec((2, 4), paged_attention, PAGED_ATTENTION, paged=True),
    "gather_rows": OpSpec((2, 2), gather_rows, paged=True),
    # rows in the number format that a product wants; only after layout
    "quantize": OpSpec((1, 1), quantize, {"act": "str"}, paged=True),
}

PAGED_OPS = frozenset(name for name, spec in OPS.items() if spec.paged)

KINDS: Mapping[str, Callable[[Attr], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, float),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "ints": lambda v: isinstance(v, tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in v),
}


def infer(op: str, inputs: Inputs, attrs: Attrs, declared: Value | None = None) -> Typed:
    """Dtype and shape of ``op``'s output. Raises ``OpFault`` for an unknown op, wrong arity, attributes or shapes."""
    spec = OPS.get(op)
    if spec is None:
        raise OpFault(f"op {op!r} is unknown")
    low, high = spec.inputs
    need(low <= len(inputs) <= high, f"{len(inputs)} inputs, expected {low}" + ("" if low == high else f" to {high}"))
    missing = sorted(set(spec.attrs) - set(attrs))
    need(not missing, f"attributes missing: {', '.join(missing)}")
    extra = sorted(set(attrs) - set(spec.attrs))
    need(not extra, f"attributes unknown: {', '.join(extra)}")
    for name, kind in spec.attrs.items():
        need(KINDS[kind](attrs[name]), f"attribute {name} must be {kind}")
    return spec.infer(inputs, attrs, declared)

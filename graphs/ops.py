"""The legal operations of the graph: one literal table of arity, attributes and dtype/shape inference.

``OPS`` is the specification that the verifier, the text form, the interpreter and every pass share. An ``infer``
function gets the input values, the attributes and the declared output (``None`` while a node is being built) and
returns the output's dtype and shape, or raises ``OpFault``. Only ``reshape``, ``expand``, ``full``, ``iota`` and ``cast``
read the declared output: their result is not a function of the inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs import infer_attention, infer_index, infer_pool, infer_recur, infer_region, infer_sample, infer_state
from ferrum.graphs.dims import DimFault, add, multiply
from ferrum.graphs.ir import STATE_KINDS, Attr, Region, Value
from ferrum.graphs.op_spec import (
    Attrs,
    Inputs,
    OpFault,
    OpSpec,
    Typed,
    axes,
    axis_of,
    broadcast,
    count,
    declared_shape,
    integer,
    need,
    show,
)

# act(gate) * up, by the op that computes act
GATES: Mapping[str, str] = {"silu_mul": "silu", "gelu_mul": "gelu", "gelu_tanh_mul": "gelu_tanh"}
ACTIVATIONS = ("", *GATES)


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
    need(count(value.shape) == count(x[0].shape), f"{show(x[0].shape)} and {show(value.shape)} have unequal numbers of elements")
    return x[0].dtype, value.shape


def expand(x: Inputs, _: Attrs, declared: Value | None) -> Typed:
    value = declared_shape(declared)
    need(broadcast(x[0].shape, value.shape) == value.shape, f"{show(x[0].shape)} does not expand to {show(value.shape)}")
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
    total = add(*(v.shape[axis] for v in x))
    return x[0].dtype, (*x[0].shape[:axis], total, *x[0].shape[axis + 1 :])


def repeat(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    axis, times = axis_of(a, x[0].shape), integer(a, "times")
    need(times > 0, f"cannot repeat an axis {times} times")
    return x[0].dtype, (*x[0].shape[:axis], multiply(times, x[0].shape[axis]), *x[0].shape[axis + 1 :])


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
    need(len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2], f"{show(a)} and {show(b)} do not multiply")
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
        need(x[2].shape == (weight[0],), f"bias {show(x[2].shape)} against {weight[0]} rows")
    out = (*x[0].shape[:-1], rows)
    if a["has_residual"]:
        need(x[-1].shape == out, f"residual {show(x[-1].shape)} against an output of {show(out)}")
    return "f32", out


def quantize(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    act = str(a["act"])
    return "q8" if act.startswith("q8") else act, x[0].shape


def embedding(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[0].dtype in ("i32", "i64"), f"tokens must be integers, not {x[0].dtype}")
    need(len(x[1].shape) == 2, "the table must have two axes")
    return x[1].dtype, (*x[0].shape, x[1].shape[1])


def rms_norm(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    need(x[1].shape == x[0].shape[-1:], f"weight {show(x[1].shape)} against rows of {x[0].shape[-1]}")
    return floating(x, a, d)


def layer_norm(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    need(len(x) == 2 + bool(a["has_bias"]), f"{len(x)} inputs do not fit has_bias")
    for name, value in zip(("weight", "bias"), x[1:], strict=False):
        need(value.shape == x[0].shape[-1:], f"{name} {show(value.shape)} against rows of {x[0].shape[-1]}")
    return floating(x, a, d)


def gated(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    need(a["activation"] in GATES, f"activation {a['activation']!r} is unknown")
    need(x[0].dtype == x[1].dtype == "f32" and x[0].shape == x[1].shape, "gate and up must agree")
    return x[0].dtype, x[0].shape


def gather_rows(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    need(x[1].dtype in ("i32", "i64") and len(x[1].shape) == 1, "row numbers must be a vector of integers")
    return x[0].dtype, (*x[1].shape, *x[0].shape[1:])


def reduction(of: Callable[..., NDArray[Any]]) -> OpSpec:
    return OpSpec((1, 1), reduce_axis, REDUCE, paged=True, uses="along", numpy=of)


VALUE = {"value": "float"}
AXIS = {"axis": "int"}
REPEAT = {"axis": "int", "times": "int"}
REDUCE = {"axis": "int", "keepdim": "bool"}
CONV = {"stride": "ints", "padding": "ints", "dilation": "ints", "groups": "int"}
SCAN = {"carried": "int", "scanned": "int", "ragged": "bool"}
ROPE = {"seq_axis": "int", "rope_dim": "int", "rope_scale": "float", "rows": "ints"}
ATTEND = {"causal": "bool", "window": "int", "scale": "float", "softcap": "float", "operands": "strs"}
LINEAR = {"has_bias": "bool", "has_residual": "bool", "activation": "str"}
PAGED_ATTENTION = {
    "layer": "int",
    "states": "strs",
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

PAGED_ATTEND = {"layer": "int", "states": "strs", "scale": "float", "window": "int", "softcap": "float", "operands": "strs"}

OPS: Mapping[str, OpSpec] = {
    # sources
    "full": OpSpec((0, 0), constant, VALUE, paged=True),
    "iota": OpSpec((0, 0), iota, {"start": "int", "step": "int"}, paged=True),
    # one by one
    "add": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.add),
    "sub": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.subtract),
    "mul": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.multiply),
    "div": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.divide),
    "add_scalar": OpSpec((1, 1), same, VALUE, uses="pointwise"),
    "mul_scalar": OpSpec((1, 1), same, VALUE, uses="pointwise"),
    "pow_scalar": OpSpec((1, 1), same, VALUE, uses="pointwise"),
    "neg": OpSpec((1, 1), same, uses="pointwise", numpy=np.negative),
    "reciprocal": OpSpec((1, 1), floating, uses="pointwise", numpy=lambda x: 1 / x),
    "sqrt": OpSpec((1, 1), floating, uses="pointwise", numpy=np.sqrt),
    "rsqrt": OpSpec((1, 1), floating, uses="pointwise", numpy=lambda x: 1 / np.sqrt(x)),
    "exp": OpSpec((1, 1), floating, uses="pointwise", numpy=np.exp),
    "cos": OpSpec((1, 1), floating, uses="pointwise", numpy=np.cos),
    "sin": OpSpec((1, 1), floating, uses="pointwise", numpy=np.sin),
    "sigmoid": OpSpec((1, 1), floating, uses="pointwise"),
    "silu": OpSpec((1, 1), floating, uses="pointwise"),
    "gelu": OpSpec((1, 1), floating, uses="pointwise"),
    "gelu_tanh": OpSpec((1, 1), floating, uses="pointwise"),
    "tanh": OpSpec((1, 1), floating, uses="pointwise", numpy=np.tanh),
    "log": OpSpec((1, 1), floating, uses="pointwise", numpy=np.log),
    "log1p": OpSpec((1, 1), floating, uses="pointwise", numpy=np.log1p),
    "expm1": OpSpec((1, 1), floating, uses="pointwise", numpy=np.expm1),
    "erf": OpSpec((1, 1), floating, uses="pointwise"),
    "floor": OpSpec((1, 1), floating, uses="pointwise", numpy=np.floor),
    "abs": OpSpec((1, 1), same, uses="pointwise", numpy=np.abs),
    "maximum": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.maximum),
    "minimum": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.minimum),
    "pow": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.power),
    "floor_divide": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.floor_divide),
    "remainder": OpSpec((2, 2), elementwise, uses="pointwise", numpy=np.mod),
    "cast": OpSpec((1, 1), cast, uses="pointwise"),
    "lt": OpSpec((2, 2), compare, uses="pointwise", numpy=np.less),
    "le": OpSpec((2, 2), compare, uses="pointwise", numpy=np.less_equal),
    "gt": OpSpec((2, 2), compare, uses="pointwise", numpy=np.greater),
    "ge": OpSpec((2, 2), compare, uses="pointwise", numpy=np.greater_equal),
    "eq": OpSpec((2, 2), compare, uses="pointwise", numpy=np.equal),
    "ne": OpSpec((2, 2), compare, uses="pointwise", numpy=np.not_equal),
    "and": OpSpec((2, 2), logical, uses="pointwise", numpy=np.logical_and),
    "or": OpSpec((2, 2), logical, uses="pointwise", numpy=np.logical_or),
    "not": OpSpec((1, 1), logical, uses="pointwise", numpy=np.logical_not),
    "where": OpSpec((3, 3), where, uses="pointwise", numpy=np.where),
    "tril": OpSpec((1, 1), triangle, {"diagonal": "int"}, numpy=lambda x, diagonal: np.tril(x, diagonal)),
    "triu": OpSpec((1, 1), triangle, {"diagonal": "int"}, numpy=lambda x, diagonal: np.triu(x, diagonal)),
    # form
    "reshape": OpSpec((1, 1), reshape, paged=True),
    "expand": OpSpec((1, 1), expand, paged=True),
    "permute": OpSpec((1, 1), permute, {"order": "ints"}, paged=True, numpy=lambda x, order: x.transpose(order)),
    "slice": OpSpec((1, 1), slice_axis, {"axis": "int", "start": "int", "end": "int"}, paged=True, uses="along"),
    "cat": OpSpec((1, 64), cat, AXIS, paged=True, uses="along", numpy=lambda *x, axis: np.concatenate(x, axis)),
    "split": OpSpec((1, 1), None, {"axis": "int", "sizes": "ints"}, infer_all=infer_region.split, paged=True, uses="along"),
    "repeat": OpSpec((1, 1), repeat, REPEAT, paged=True, numpy=lambda x, axis, times: np.repeat(x, times, axis)),
    # along an axis
    "mean": reduction(lambda x, axis, keepdim: x.mean(axis, keepdims=keepdim)),
    "sum": reduction(lambda x, axis, keepdim: x.sum(axis, keepdims=keepdim)),
    "max": reduction(lambda x, axis, keepdim: x.max(axis, keepdims=keepdim)),
    "min": reduction(lambda x, axis, keepdim: x.min(axis, keepdims=keepdim)),
    "softmax": OpSpec((1, 1), softmax, AXIS, paged=True, uses="along"),
    "cumsum": OpSpec((1, 1), infer_index.cumsum, AXIS, uses="along", paged=True),
    "topk": OpSpec((1, 1), None, {"k": "int"}, infer_all=infer_region.topk, uses="last", paged=True),
    "sort": OpSpec((1, 1), None, {"axis": "int", "descending": "bool"}, infer_all=infer_index.sort, uses="along", paged=True),
    # places of an axis
    "take": OpSpec((2, 2), infer_index.take, AXIS, paged=True),
    "gather": OpSpec((2, 2), infer_index.gather, AXIS, uses="along", paged=True),
    "scatter": OpSpec((3, 3), infer_index.scatter, AXIS, uses="along", paged=True),
    "scatter_add": OpSpec((3, 3), infer_index.scatter, AXIS, uses="along", paged=True),
    "pad": OpSpec((1, 1), infer_index.pad, {"before": "ints", "after": "ints", "value": "float"}, paged=True),
    # products
    "matmul": OpSpec((2, 2), matmul, numpy=np.matmul, paged=True),
    "grouped_linear": OpSpec((3, 3), infer_index.grouped_linear, uses="last", paged=True),
    "conv": OpSpec((2, 2), infer_index.conv, CONV, paged=True),
    # with a body
    "map": OpSpec((1, 16), None, infer_all=infer_region.map_elements, regions=1, paged=True, uses="pointwise"),
    "scan": OpSpec((1, 32), None, SCAN, infer_all=infer_region.scan, regions=1),
    # versions of states
    "write": OpSpec((2, 2), infer_state.write, state=True),
    "read": OpSpec((1, 1), infer_state.read, state=True),
    "view": OpSpec((1, 1), infer_state.view, {"axis": "int", "start": "int", "end": "int"}, state=True),
    # tokens that see each other: scaled dot product as torch has it, on [batch, heads, seq, head_dim], and the general form
    "sdpa": OpSpec((3, 4), infer_attention.sdpa, {"is_causal": "bool", "scale": "float"}),
    "attend": OpSpec((3, 8), infer_attention.attend, ATTEND, state=True, paged=True),
    "rope": OpSpec((3, 3), infer_attention.rope, ROPE, paged=True),
    "recur": OpSpec((4, 5), infer_recur.recur, {"delta": "bool"}),
    "short_conv": OpSpec((3, 3), None, infer_all=infer_region.short_conv),
    "gated": OpSpec((2, 2), gated, {"activation": "str"}, uses="pointwise"),
    # the finished graph
    "embedding": OpSpec((2, 2), embedding, {"scale": "float"}, paged=True, uses="last"),
    "rms_norm": OpSpec((2, 2), rms_norm, {"eps": "float"}, paged=True, uses="last"),
    "layer_norm": OpSpec((2, 3), layer_norm, {"eps": "float", "has_bias": "bool"}, paged=True, uses="last"),
    "linear": OpSpec((2, 4), linear, LINEAR, paged=True, uses="last"),
    "paged_attention": OpSpec((2, 4), infer_attention.paged_attention, PAGED_ATTENTION, paged=True),
    "paged_attend": OpSpec((3, 5), infer_attention.paged_attend, PAGED_ATTEND, paged=True),
    "paged_recur": OpSpec((4, 5), infer_recur.paged_recur, {"layer": "int", "states": "strs", "delta": "bool"}, paged=True),
    # its tail: the rows whose logits are wanted, and what is drawn from them
    "gather_rows": OpSpec((2, 2), gather_rows, paged=True, numpy=lambda x, rows: x[rows]),
    # of encoders: one row of each sequence
    "pool": OpSpec((1, 2), infer_pool.pool, {"how": "str"}, paged=True),
    "sample": OpSpec((infer_sample.ARITY, infer_sample.ARITY), None, infer_all=infer_sample.sample, paged=True),
    # rows in the number format that a product wants; only after layout
    "quantize": OpSpec((1, 1), quantize, {"act": "str"}, paged=True, numpy=lambda x, act: x),  # the oracle keeps the exact rows
}

PAGED_OPS = frozenset(name for name, spec in OPS.items() if spec.paged)

KINDS: Mapping[str, Callable[[Attr], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, float),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "ints": lambda v: isinstance(v, tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in v),
    "strs": lambda v: isinstance(v, tuple) and all(isinstance(i, str) for i in v),
}


def infer(
    op: str, inputs: Inputs, attrs: Attrs, declared: tuple[Value, ...] = (), regions: tuple[Region, ...] = ()
) -> tuple[Typed, ...]:
    """Dtypes and shapes of ``op``'s outputs. Raises ``OpFault`` for an unknown op, wrong arity, attributes or shapes."""
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
    states = [value.name for value in inputs if value.dtype in STATE_KINDS]
    need(spec.state or not states, f"{', '.join(states)}: a version of a state, which {op} cannot read")
    need(len(regions) == spec.regions, f"{len(regions)} regions, expected {spec.regions}")
    try:
        if spec.infer_all is not None:
            return spec.infer_all(inputs, attrs, regions)
        assert spec.infer is not None
        return (spec.infer(inputs, attrs, declared[0] if declared else None),)
    except DimFault as fault:
        raise OpFault(str(fault)) from fault

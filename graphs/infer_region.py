"""Shapes of operations with a body: ``map`` over elements and ``scan`` along an axis; and those with several outputs."""

from __future__ import annotations

from collections.abc import Iterable

from ferrum.graphs.dims import add
from ferrum.graphs.ir import Region, Shape, Value
from ferrum.graphs.op_spec import Attrs, Inputs, OpFault, Typed, axes, axis_of, broadcast, integer, need, show

# What a body of ``map`` may hold: one element at a time. ``full`` is a constant in it.
ELEMENT_OPS = frozenset(
    (
        *("full", "cast", "where", "add", "sub", "mul", "div", "add_scalar", "mul_scalar", "pow_scalar", "neg", "reciprocal"),
        *("sqrt", "rsqrt", "exp", "cos", "sin", "sigmoid", "silu", "gelu", "gelu_tanh"),
        *("tanh", "log", "log1p", "expm1", "erf", "floor", "abs", "maximum", "minimum", "pow", "floor_divide", "remainder"),
        *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"),
    )
)


def output_values(region: Region) -> list[Value]:
    table = {value.name: value for value in region.inputs}
    table.update((v.name, v) for node in region.nodes for v in node.outputs)
    missing = [name for name in region.outputs if name not in table]
    need(not missing, f"the region's output {missing[:1]} is not defined")
    return [table[name] for name in region.outputs]


def types(values: Iterable[Value]) -> list[Typed]:
    return [(value.dtype, value.shape) for value in values]


def map_elements(x: Inputs, _: Attrs, regions: tuple[Region, ...]) -> tuple[Typed, ...]:
    """The region's outputs for every element of the inputs, which are broadcast against each other."""
    (region,) = regions
    outside = sorted({node.op for node in region.nodes} - ELEMENT_OPS)
    need(not outside, f"{', '.join(outside)} in a region of single elements")
    need(types(region.inputs) == [(value.dtype, ()) for value in x], "the region's inputs are single elements of the inputs")
    shape: Shape = ()
    for value in x:
        shape = broadcast(shape, value.shape)
    return tuple((value.dtype, shape) for value in output_values(region))


def scan(x: Inputs, a: Attrs, regions: tuple[Region, ...]) -> tuple[Typed, ...]:
    """Inputs are ``carried`` values, ``scanned`` ones and others; the region turns carried values and one row of each scanned
    value into new carried values and rows of outputs. Ragged: the rows are those of the step's sequences, one after the other,
    and carried values have an axis ``seqs`` in front: each sequence goes on from its own."""
    (region,) = regions
    carried, scanned, ragged = integer(a, "carried"), integer(a, "scanned"), bool(a["ragged"])
    need(carried >= 0 and scanned >= 1, "something is scanned")
    need(carried + scanned <= len(x), f"{len(x)} inputs for {carried} carried and {scanned} scanned")
    first, rows, rest = x[:carried], x[carried : carried + scanned], x[carried + scanned :]
    need(all(value.shape for value in rows), "a scanned value needs an axis")
    steps = rows[0].shape[0]
    need(all(value.shape[0] == steps for value in rows), "scanned values differ in their first axis")
    need(not ragged or all(value.shape[:1] == ("seqs",) for value in first), "carried values of a ragged scan begin with seqs")
    inner = [(v.dtype, v.shape[ragged:]) for v in first] + [(v.dtype, v.shape[1:]) for v in rows] + types(rest)
    need(types(region.inputs) == inner, "the region's inputs are the carried values, a row of each scanned value and the others")
    outputs = output_values(region)
    need(types(outputs[:carried]) == inner[:carried], "the region's first outputs are the carried values")
    return (*types(first), *((value.dtype, (steps, *value.shape)) for value in outputs[carried:]))


def split(x: Inputs, a: Attrs, _: tuple[Region, ...]) -> tuple[Typed, ...]:
    axis, sizes = axis_of(a, x[0].shape), axes(a, "sizes")
    need(len(sizes) > 0 and min(sizes) > 0, "sizes must be positive")
    need(add(*sizes) == x[0].shape[axis], f"sizes {list(sizes)} of an axis of {x[0].shape[axis]}")
    return tuple((x[0].dtype, (*x[0].shape[:axis], size, *x[0].shape[axis + 1 :])) for size in sizes)


def topk(x: Inputs, a: Attrs, _: tuple[Region, ...]) -> tuple[Typed, ...]:
    """The ``k`` largest of the last axis, largest first, and where they were; of equal ones the first comes first."""
    k = integer(a, "k")
    if not x[0].shape or not isinstance(x[0].shape[-1], int):
        raise OpFault(f"the largest of {show(x[0].shape)}")
    need(x[0].dtype == "f32" and 0 < k <= x[0].shape[-1], f"the {k} largest of {show(x[0].shape)}")
    shape = (*x[0].shape[:-1], k)
    return ("f32", shape), ("i32", shape)


def short_conv(x: Inputs, _: Attrs, __: tuple[Region, ...]) -> tuple[Typed, ...]:
    """x [tokens, channels], past [seqs, width - 1, channels], weight [channels, width]: each channel is multiplied with its
    own last ``width`` values, oldest first. The new past follows."""
    value, past, weight = x
    need(value.dtype == past.dtype == weight.dtype == "f32", "needs float inputs")
    fits = len(value.shape) == len(weight.shape) == 2 and value.shape[1] == weight.shape[0]
    need(fits, f"{show(value.shape)} against a weight of {show(weight.shape)}")
    need(add(past.shape[1], 1) == weight.shape[1] if len(past.shape) == 3 else False, f"past {show(past.shape)}")
    need(past.shape[0] == "seqs" and past.shape[2] == value.shape[1], f"past {show(past.shape)} of rows {show(value.shape)}")
    return types((value, past))[0], types((value, past))[1]

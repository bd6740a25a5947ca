"""Shapes of operations that pick, place, order or slide along axes."""

from __future__ import annotations

from ferrum.graphs.dims import Dim, add, floor_divide, multiply
from ferrum.graphs.ir import Region, Shape, Value
from ferrum.graphs.op_spec import Attrs, Inputs, OpFault, Typed, axes, axis_of, integer, need, show

INTEGERS = ("i32", "i64")


def cumsum(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    axis_of(a, x[0].shape)
    need(x[0].dtype != "bool", "needs numbers")
    return x[0].dtype, x[0].shape


def sort(x: Inputs, a: Attrs, _: tuple[Region, ...]) -> tuple[Typed, ...]:
    """The values of an axis in order, and where they were; equal ones keep their order."""
    axis_of(a, x[0].shape)
    need(x[0].dtype != "bool", "needs numbers")
    return (x[0].dtype, x[0].shape), ("i32", x[0].shape)


def take(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """x with ``axis`` replaced by the places that the indices, of any shape, name."""
    axis = axis_of(a, x[0].shape)
    need(x[1].dtype in INTEGERS, f"places must be integers, not {x[1].dtype}")
    return x[0].dtype, (*x[0].shape[:axis], *x[1].shape, *x[0].shape[axis + 1 :])


def along(x: Inputs, a: Attrs) -> int:
    """The axis along which indices of x's rank name places, after the other axes were checked."""
    axis, value, at = axis_of(a, x[0].shape), x[0].shape, x[1].shape
    need(x[1].dtype in INTEGERS, f"places must be integers, not {x[1].dtype}")
    fits = len(at) == len(value) and all(i == axis or n == m for i, (n, m) in enumerate(zip(at, value, strict=False)))
    need(fits, f"places {show(at)} along axis {axis} of {show(value)}")
    return axis


def gather(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    along(x, a)
    return x[0].dtype, x[1].shape


def scatter(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """x with values put (or added) where the indices say."""
    along(x, a)
    need(x[2].shape == x[1].shape and x[2].dtype == x[0].dtype, f"{x[2].dtype}{show(x[2].shape)} at places {show(x[1].shape)}")
    return x[0].dtype, x[0].shape


def pad(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    before, after = axes(a, "before"), axes(a, "after")
    need(len(before) == len(after) == len(x[0].shape), f"before and after name each axis of {show(x[0].shape)}")
    need(min((*before, *after), default=0) >= 0, "cannot pad by less than nothing")
    return x[0].dtype, tuple(add(n, b, c) for n, b, c in zip(x[0].shape, before, after, strict=True))


def conv(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """x [batch, channels, places ..] with weight [out, channels / groups, width ..]; one stride, padding and dilation an axis."""
    value, weight = x[0].shape, x[1].shape
    steps = [axes(a, name) for name in ("stride", "padding", "dilation")]
    groups, rank = integer(a, "groups"), len(value) - 2
    need(rank >= 1 and len(weight) == len(value), f"{show(value)} against a weight of {show(weight)}")
    need(x[0].dtype == x[1].dtype == "f32", "needs f32 inputs")
    need(all(len(s) == rank for s in steps), f"stride, padding and dilation name {rank} axes")
    need(min(steps[0] + steps[2]) > 0 and min(steps[1]) >= 0, "stride and dilation are positive, padding is not negative")
    out = weight[0]
    need(groups > 0 and isinstance(out, int) and out % groups == 0, f"{out} channels in {groups} groups")
    need(multiply(groups, weight[1]) == value[1], f"{show(value)} in {groups} groups against a weight of {show(weight)}")
    places = (places_of(*each) for each in zip(value[2:], weight[2:], *steps, strict=True))
    return "f32", (value[0], out, *places)


def places_of(size: Dim, width: Dim, stride: int, padding: int, dilation: int) -> Dim:
    """How often a window fits."""
    if not isinstance(width, int):
        raise OpFault("a weight has fixed dims")
    return add(floor_divide(add(size, 2 * padding, -dilation * (width - 1) - 1), stride), 1)


def grouped_linear(x: Inputs, _: Attrs, __: Value | None) -> Typed:
    """x [rows .., K], weights [groups, N, K] and for each row the number of its weight: x @ weight[group].T."""
    value, weight, group = (v.shape for v in x)
    need(x[0].dtype == x[1].dtype == "f32" and x[2].dtype in INTEGERS, "needs f32 rows and weights, and integers")
    need(len(weight) == 3, f"weights {show(weight)} have three axes")
    need(len(value) >= 1 and value[-1] == weight[2], f"{show(value)} against weights {show(weight)}")
    need(group == value[:-1], f"groups {show(group)} of rows {show(value)}")
    rows: Shape = value[:-1]
    return "f32", (*rows, weight[1])

"""What importers write graphs with, whatever they read: nodes, casts, constants, and functions that are a few of our ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrum.graphs.dims import Dim, subtract, terms_of
from ferrum.graphs.frontend.uniform import settled
from ferrum.graphs.ir import Shape, Value
from ferrum.graphs.rewrite import Scope


class Unsupported(Exception):
    """``what`` cannot be imported; ``nearest`` can."""

    def __init__(self, what: str, nearest: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.nearest = nearest


class Builder:
    """Emits into ``scope``."""

    scope: Scope

    def type(self, name: str) -> Value:
        return self.scope.types[name]

    def emit(self, op: str, *inputs: str, shape: Shape | None = None, dtype: str = "", **attrs: Any) -> str:
        name = self.scope.emit(op, *inputs, shape=shape, dtype=dtype, **attrs)
        truth = settled(self.scope, name) if op in ("eq", "ne") else None
        return name if truth is None else self.constant(truth, self.type(name).shape, "bool")

    def cast(self, name: str, dtype: str) -> str:
        return name if self.type(name).dtype == dtype else self.emit("cast", name, dtype=dtype)

    def constant(self, value: float, shape: Shape, dtype: str) -> str:
        return self.emit("full", shape=shape, dtype=dtype, value=float(value))

    def reshape(self, name: str, shape: Shape) -> str:
        return name if self.type(name).shape == shape else self.emit("reshape", name, shape=shape)

    def part(self, name: str, axis: int, start: int, end: int) -> str:
        size = self.type(name).shape[axis]
        if not isinstance(size, int):
            raise Unsupported(f"a part of the {size} axis", "the whole axis")
        start, end = (max(0, min(size, i + size if i < 0 else i)) for i in (start, end))
        return name if (start, end) == (0, size) else self.emit("slice", name, axis=axis, start=start, end=end)


def fixed(value: Any, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Unsupported(f"{what} that depends on the input's size", "a constant")


def scalar(to: Builder, value: float, like: str) -> str:
    return to.constant(value, (), to.type(like).dtype)


def relu(to: Builder, x: str) -> str:
    return to.emit("maximum", x, scalar(to, 0.0, x))


def relu6(to: Builder, x: str) -> str:
    return to.emit("minimum", relu(to, x), scalar(to, 6.0, x))


def ceil(to: Builder, x: str) -> str:
    return to.emit("neg", to.emit("floor", to.emit("neg", x)))


def softplus(to: Builder, x: str) -> str:
    """log(1 + exp(x)) without overflow: max(x, 0) + log1p(exp(-|x|))."""
    return to.emit("add", relu(to, x), to.emit("log1p", to.emit("exp", to.emit("neg", to.emit("abs", x)))))


def log_sigmoid(to: Builder, x: str) -> str:
    return to.emit("neg", softplus(to, to.emit("neg", x)))


def elu(to: Builder, x: str, alpha: float) -> str:
    negative = to.emit("expm1", to.emit("minimum", x, scalar(to, 0.0, x)))
    low = to.emit("mul_scalar", negative, value=alpha)
    return to.emit("where", to.emit("gt", x, scalar(to, 0.0, x)), x, low)


def leaky_relu(to: Builder, x: str, slope: float) -> str:
    return to.emit("where", to.emit("gt", x, scalar(to, 0.0, x)), x, to.emit("mul_scalar", x, value=slope))


def log_softmax(to: Builder, x: str, axis: int) -> str:
    moved = to.emit("sub", x, to.emit("max", x, axis=axis, keepdim=True))
    total = to.emit("sum", to.emit("exp", moved), axis=axis, keepdim=True)
    return to.emit("sub", moved, to.emit("log", total))


def centered(to: Builder, x: str, axes: list[int]) -> tuple[str, str]:
    """(x - mean, the mean of its squares), axes kept."""
    mean = x
    for axis in axes:
        mean = to.emit("mean", mean, axis=axis, keepdim=True)
    x = to.emit("sub", x, mean)
    square = to.emit("pow_scalar", x, value=2.0)
    for axis in axes:
        square = to.emit("mean", square, axis=axis, keepdim=True)
    return x, square


def every(to: Builder, x: str, axis: int, start: int, end: int, step: int) -> str:
    """x[start:end:step] of a fixed axis: a column of a table of ``step`` columns where that fits, else places that are taken."""
    size = fixed(to.type(x).shape[axis], "an axis that is cut")
    start, end = (max(0, min(size, i + size if i < 0 else i)) for i in (start, end))
    count = -(-(end - start) // step)
    shape = to.type(x).shape
    if start < step and end == size and size % step == 0:
        table = to.reshape(x, (*shape[:axis], size // step, step, *shape[axis + 1 :]))
        column = to.emit("slice", table, axis=axis + 1, start=start, end=start + 1)
        return to.reshape(column, (*shape[:axis], size // step, *shape[axis + 1 :]))
    return to.emit("take", x, to.emit("iota", shape=(count,), dtype="i64", start=start, step=step), axis=axis)


def count_of(to: Builder, size: Dim) -> str:
    """A size as a value."""
    return to.cast(to.emit("sum", to.constant(1.0, (size,), "f32"), axis=0, keepdim=False), "i64")


def places_of_several(to: Builder, places: Sequence[str], sizes: Sequence[Dim]) -> str:
    """One number for each place in the axes ``sizes``, taken as one axis."""
    flat = to.cast(places[0], "i64")
    for name, size in zip(places[1:], sizes[1:], strict=True):
        if isinstance(size, int):
            row = to.emit("mul_scalar", flat, value=float(size))
        else:
            row = to.emit("mul", flat, count_of(to, size))
        flat = to.emit("add", row, to.cast(name, "i64"))
    return flat


def between(to: Builder, x: str, axis: int, first: Dim, stop: Dim) -> str:
    """A part of an axis that tokens make long, or of a table as much as there are tokens: what places of it hold. Only of tables;
    nothing else may depend on how far an axis goes."""
    width = subtract(stop, first)
    if x not in to.scope.tables or any(map(negative, (first, width))):
        raise Unsupported(f"a part of the {to.type(x).shape[axis]} axis", "the whole axis")
    known = isinstance(first, int)
    at = to.emit("iota", shape=(width,), dtype="i64", start=first if known else 0, step=1)
    return to.emit("take", x, at if known else to.emit("add", at, count_of(to, first)), axis=axis)


def negative(dim: Dim) -> bool:
    """Whether a size is less than 0, whatever its names stand for."""
    terms = terms_of(dim)
    return bool(terms) and all(factor < 0 for factor in terms.values())


def last(to: Builder, x: str, axis: int) -> tuple[int, ...]:
    """The order of axes that puts ``axis`` last; it is its own inverse."""
    order = list(range(len(to.type(x).shape)))
    order[axis], order[-1] = order[-1], order[axis]
    return tuple(order)


def top(to: Builder, x: str, axis: int, k: int, largest: bool) -> tuple[str, str]:
    """The k largest (or smallest) along an axis, and where they are."""
    if not isinstance(to.type(x).shape[axis], int):
        raise Unsupported(f"the place of the {'max' if largest else 'min'} of an axis that depends on the input's size",
                          "an axis of fixed size")  # fmt: skip
    order = last(to, x, axis)
    turned = to.emit("permute", x, order=order)
    values, at = to.scope.add("topk", (turned if largest else to.emit("neg", turned),), None, "", {"k": k})
    values = values if largest else to.emit("neg", values)
    return to.emit("permute", values, order=order), to.cast(to.emit("permute", at, order=order), "i64")

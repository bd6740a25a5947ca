"""Parameters as expressions over checkpoint tensors: what is cut, joined, turned and mapped before a weight is stored.

An expression has a type: its shape, its dtype (``f32`` is any float, whatever the checkpoint stores it as) and, where it is
quantized, the blocks that share a scale. Cuts and joins along other axes than the blocks' own, and axes in another order, keep
the blocks; everything else makes floats.

``rows``, ``cat``, ``reshape``, ``permute`` and ``mapped`` build expressions in their simplest form: a cut of a join is a join of
cuts, pieces that were cut from one tensor and joined again are the tensor. The classes themselves keep what they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from ferrum.graphs.expressions.functions import FUNCTIONS
from ferrum.graphs.expressions.ggml.table import BLOCKS, Part
from ferrum.graphs.expressions.quarters import LETTERS
from ferrum.graphs.expressions.types import Blocked as Blocked
from ferrum.graphs.expressions.types import ExpressionFault as ExpressionFault
from ferrum.graphs.expressions.types import Ints as Ints
from ferrum.graphs.expressions.types import Type as Type
from ferrum.graphs.expressions.types import check as check
from ferrum.graphs.expressions.types import reshaped_blocks


@dataclass(frozen=True, slots=True)
class Components:
    """A quantized tensor's parts as expressions: value = step * scale * (code - zero) + min_step * min.

    ``zeros`` and ``mins`` are None for 0, steps for 1.
    ``codes`` has the values' shape; the blocks' axis of the others is as many times shorter as a block, or a span, is long.
    """

    codes: Expr
    scales: Expr
    zeros: Expr | None = None
    mins: Expr | None = None
    steps: Expr | None = None
    min_steps: Expr | None = None


class Scheme(Protocol):
    """How one kind of checkpoint stores blocks; ``size`` values are a block."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def type_of(self, parts: Sequence[Type]) -> Type:
        """The values' type. Raises ExpressionFault for parts that do not belong together."""

    def components(self, parts: Sequence[Expr]) -> Components: ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the checkpoint, by name."""

    name: str
    shape: Ints
    dtype: str = "f32"

    @property
    def type(self) -> Type:
        check(all(dim >= 1 for dim in self.shape), f"{self.name} of shape {list(self.shape)}")
        return Type(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Rows:
    """``start:stop:step`` of one axis."""

    source: Expr
    axis: int
    start: int
    stop: int
    step: int = 1

    @property
    def type(self) -> Type:
        inner = self.source.type
        check(0 <= self.axis < len(inner.shape), f"rows of axis {self.axis} of a shape {list(inner.shape)}")
        size = inner.shape[self.axis]
        asked = f"rows {self.start}:{self.stop}:{self.step} of {size}"
        check(0 <= self.start < self.stop <= size and self.step >= 1, f"{asked} are not inside of it")
        shape = _with_axis(inner.shape, self.axis, -(-(self.stop - self.start) // self.step))
        return Type(shape, inner.dtype, _unless_along(inner.blocked, self.axis))


@dataclass(frozen=True, slots=True)
class Cat:
    """Parts one after the other along an axis."""

    parts: tuple[Expr, ...]
    axis: int

    @property
    def type(self) -> Type:
        check(self.axis >= 0, f"cat along axis {self.axis}")
        types = _alike(self.parts, "cat", self.axis)
        size = sum(t.shape[self.axis] for t in types)
        return Type(_with_axis(types[0].shape, self.axis, size), types[0].dtype, _unless_along(_common(types), self.axis))


@dataclass(frozen=True, slots=True)
class Stack:
    """Parts of one shape along a new first axis."""

    parts: tuple[Expr, ...]

    @property
    def type(self) -> Type:
        types = _alike(self.parts, "stack", -1)
        blocked = _common(types)
        moved = blocked and replace(blocked, axis=blocked.axis + 1)
        return Type((len(types), *types[0].shape), types[0].dtype, moved)


@dataclass(frozen=True, slots=True)
class Reshape:
    source: Expr
    shape: Ints

    @property
    def type(self) -> Type:
        inner = self.source.type
        fits = math.prod(inner.shape) == math.prod(self.shape) and all(dim >= 1 for dim in self.shape)
        check(fits, f"reshape of {list(inner.shape)} to {list(self.shape)}")
        return Type(self.shape, inner.dtype, reshaped_blocks(inner, self.shape))


@dataclass(frozen=True, slots=True)
class Permute:
    """Axis ``i`` of the result is axis ``order[i]`` of the source."""

    source: Expr
    order: Ints

    @property
    def type(self) -> Type:
        inner = self.source.type
        check(sorted(self.order) == list(range(len(inner.shape))), f"order {list(self.order)} of {len(inner.shape)} axes")
        blocked = inner.blocked and replace(inner.blocked, axis=self.order.index(inner.blocked.axis))
        return Type(tuple(inner.shape[axis] for axis in self.order), inner.dtype, blocked)


@dataclass(frozen=True, slots=True)
class Map:
    """An elementwise function with a constant, which is 0 where it has no use for one."""

    source: Expr
    function: str
    value: float = 0.0

    @property
    def type(self) -> Type:
        inner = self.source.type
        check(self.function in FUNCTIONS, f"map by {self.function!r}, which is not one of {', '.join(FUNCTIONS)}")
        takes, gives = FUNCTIONS[self.function].takes, FUNCTIONS[self.function].gives
        wanted = "float" if takes == ("f32",) else " or ".join(takes)
        check(inner.dtype in takes, f"map of {inner.dtype}, which is not {wanted}")
        return Type(inner.shape, gives)


@dataclass(frozen=True, slots=True)
class Factors:
    """Values times 2 ** (n / 4), of which each place of an axis has its whole number n, one of ``LETTERS``."""

    source: Expr
    axis: int
    quarters: str

    @property
    def type(self) -> Type:
        inner = self.source.type
        check(inner.dtype == "f32", f"factors of {inner.dtype}, which is not float")
        known = 0 <= self.axis < len(inner.shape) and set(self.quarters) <= set(LETTERS)
        fits = known and len(self.quarters) == inner.shape[self.axis]
        check(fits, f"{len(self.quarters)} factors of axis {self.axis} of a shape {list(inner.shape)}")
        return Type(inner.shape)


@dataclass(frozen=True, slots=True)
class Dequant:
    """The values that a scheme's parts mean."""

    scheme: Scheme
    parts: tuple[Expr, ...]

    @property
    def type(self) -> Type:
        return self.scheme.type_of([part.type for part in self.parts])


@dataclass(frozen=True, slots=True)
class View:
    """The bytes of the last axis as numbers of another dtype. Only components of schemes hold it."""

    source: Expr
    dtype: str
    nbytes: int

    @property
    def type(self) -> Type:
        inner = self.source.type
        return Type((*inner.shape[:-1], inner.shape[-1] // self.nbytes), self.dtype)


@dataclass(frozen=True, slots=True)
class Unpack:
    """Words (i32, or u8) along an axis as whole numbers of a few bits that lie side by side, the lowest first or in the order of
    ``places``, each ``plus`` more. Only components of schemes hold it."""

    source: Expr
    axis: int
    bits: int
    places: Ints = ()
    plus: int = 0

    @property
    def width(self) -> int:
        """Bits of a word."""
        return 8 if self.source.type.dtype == "u8" else 32

    @property
    def type(self) -> Type:
        shape = self.source.type.shape
        dtype = "i8" if self.plus < 0 else "u8"
        return Type(_with_axis(shape, self.axis, shape[self.axis] * self.width // self.bits), dtype)


@dataclass(frozen=True, slots=True)
class Repeat:
    """Each element of an axis ``times`` times, ``size`` in all. Only components of schemes hold it."""

    source: Expr
    axis: int
    times: int
    size: int

    @property
    def type(self) -> Type:
        return replace(self.source.type, shape=_with_axis(self.source.type.shape, self.axis, self.size))


@dataclass(frozen=True, slots=True)
class Pick:
    """What is at each ``index`` of an axis, in whose place the index's axes are. Only components of schemes hold it."""

    source: Expr
    index: Expr
    axis: int

    @property
    def type(self) -> Type:
        shape = self.source.type.shape
        return replace(self.source.type, shape=(*shape[: self.axis], *self.index.type.shape, *shape[self.axis + 1 :]))


@dataclass(frozen=True, slots=True)
class Field:
    """One part of the blocks that lie along the last axis as bytes. Only components of schemes hold it."""

    source: Expr
    block: str
    part: Part

    @property
    def type(self) -> Type:
        shape, block = self.source.type.shape, BLOCKS[self.block]
        whole = "u8" if block.stored == "u6" else "i8"
        dtype = "i8" if self.part == "codes" else whole if block.steps and self.part in ("scales", "mins") else "f32"
        return Type((*shape[:-1], shape[-1] // block.nbytes * block.count(self.part)), dtype)


Expr: TypeAlias = (
    Tensor | Rows | Cat | Stack | Reshape | Permute | Map | Factors | Dequant | View | Unpack | Repeat | Pick | Field
)


def inputs(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Tensor):
        return ()
    if isinstance(expr, Pick):
        return (expr.source, expr.index)
    return expr.parts if isinstance(expr, Cat | Stack | Dequant) else (expr.source,)


def tensors(expr: Expr) -> tuple[Tensor, ...]:
    """The tensors that an expression reads, in order; one that it reads twice is there twice."""
    if isinstance(expr, Tensor):
        return (expr,)
    return tuple(tensor for part in inputs(expr) for tensor in tensors(part))


def substituted(expr: Expr, found: Mapping[str, Expr]) -> Expr:
    """The same with expressions in the places of tensors, by their names. Raises ExpressionFault when they do not fit."""
    if isinstance(expr, Tensor):
        source = found.get(expr.name, expr)
        given = source.type.shape
        check(given == expr.shape, f"{expr.name} is {list(given)}, expected {list(expr.shape)}")
        return source
    parts = tuple(substituted(part, found) for part in inputs(expr))
    if isinstance(expr, Cat):
        return cat(parts, expr.axis)
    if isinstance(expr, Stack | Dequant):
        return replace(expr, parts=parts)
    (part,) = parts
    if isinstance(expr, Rows):
        return rows(part, expr.axis, expr.start, expr.stop, expr.step)
    if isinstance(expr, Reshape):
        return reshape(part, expr.shape)
    if isinstance(expr, Permute):
        return permute(part, expr.order)
    return replace(expr, source=part)


def _with_axis(shape: Ints, axis: int, size: int) -> Ints:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _unless_along(blocked: Blocked | None, axis: int) -> Blocked | None:
    return blocked if blocked and blocked.axis != axis else None


def _common(types: Sequence[Type]) -> Blocked | None:
    return types[0].blocked if len({t.blocked for t in types}) == 1 else None


def _alike(parts: tuple[Expr, ...], op: str, axis: int) -> list[Type]:
    """The parts' types, which may differ along ``axis`` only (-1: not at all)."""
    types = [part.type for part in parts]
    check(bool(types), f"{op} of nothing")
    check(axis < len(types[0].shape) and axis >= -1, f"{op} along axis {axis} of a shape {list(types[0].shape)}")
    kinds = {(t.dtype, len(t.shape), *(d for i, d in enumerate(t.shape) if i != axis)) for t in types}
    shapes = ", ".join(str(list(t.shape)) for t in types[:4])
    check(len(kinds) == 1, f"{op} of parts that differ: {shapes}" + (f" of {types[0].dtype}" if len(types) == 1 else ""))
    return types


# building


def rows(expr: Expr, axis: int, start: int, stop: int, step: int = 1) -> Expr:
    """``start:stop:step`` of an axis. Raises ExpressionFault when that is not inside of it."""
    made = Rows(expr, axis, start, stop, step)
    shape, size = made.type.shape, expr.type.shape[axis]
    if step == 1 and (start, stop) == (0, size):
        return expr
    if isinstance(expr, Rows) and expr.axis == axis:
        first = expr.start + start * expr.step
        last = first + (shape[axis] - 1) * step * expr.step
        return rows(expr.source, axis, first, last + 1, step * expr.step)
    if isinstance(expr, Cat) and expr.axis == axis and step == 1:
        found, at = [], 0
        for part in expr.parts:
            low, high = max(start - at, 0), min(stop - at, part.type.shape[axis])
            if low < high:
                found.append(rows(part, axis, low, high))
            at += part.type.shape[axis]
        return cat(found, axis)
    return made


def cat(parts: Sequence[Expr], axis: int) -> Expr:
    """The parts one after the other. Raises ExpressionFault when they do not fit together."""
    Cat(tuple(parts), axis).type  # noqa: B018 - its faults
    found: list[Expr] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Cat) and part.axis == axis else (part,):
            if found and (whole := _continued(found[-1], piece, axis)):
                found[-1] = whole
            else:
                found.append(piece)
    return found[0] if len(found) == 1 else Cat(tuple(found), axis)


def _continued(first: Expr, second: Expr, axis: int) -> Expr | None:
    """Both as one cut when the second begins where the first ends."""
    if not (isinstance(first, Rows) and isinstance(second, Rows)) or first.source != second.source:
        return None
    if (first.axis, first.step, first.stop) != (axis, 1, second.start) or (second.axis, second.step) != (axis, 1):
        return None
    return rows(first.source, axis, first.start, second.stop)


def reshape(expr: Expr, shape: Ints) -> Expr:
    """Raises ExpressionFault when the numbers of elements differ."""
    source = expr.source if isinstance(expr, Reshape) else expr
    made = Reshape(source, shape)
    return source if made.type.shape == source.type.shape else made


def permute(expr: Expr, order: Ints) -> Expr:
    """Raises ExpressionFault when ``order`` does not name every axis once."""
    made = Permute(expr, order)
    made.type  # noqa: B018 - its faults
    if isinstance(expr, Permute):
        return permute(expr.source, tuple(expr.order[axis] for axis in order))
    return expr if order == tuple(range(len(order))) else made


def element(expr: Expr, index: int, axis: int = 0) -> Expr:
    """What is at ``index`` of an axis, which goes; blocks along another stay. Raises ExpressionFault when it is not inside."""

    def inner(source: Expr) -> Expr:
        return element(source, index, axis)

    match expr:
        case Permute():
            gone = expr.order[axis]
            order = tuple(of - (of > gone) for of in expr.order if of != gone)
            return permute(element(expr.source, index, gone), order)
        case Stack():
            return Stack(tuple(element(part, index, axis - 1) for part in expr.parts)) if axis else expr.parts[index]
        case Rows() if expr.axis != axis:
            return rows(inner(expr.source), expr.axis - (expr.axis > axis), expr.start, expr.stop, expr.step)
        case Rows():
            return element(expr.source, expr.start + index * expr.step, axis)
        case Cat() if expr.axis != axis:
            return cat([inner(part) for part in expr.parts], expr.axis - (expr.axis > axis))
        case Map():
            return mapped(inner(expr.source), expr.function, expr.value)
    shape = expr.type.shape
    return reshape(rows(expr, axis, index, index + 1), (*shape[:axis], *shape[axis + 1 :]))


def mapped(expr: Expr, function: str, value: float = 0.0) -> Expr:
    """Raises ExpressionFault for a function that is not one of ``FUNCTIONS``, or a source that it does not take."""
    made = Map(expr, function, value)
    made.type  # noqa: B018 - its faults
    return expr if (function, value) == ("mul", 1.0) else made


def factors(expr: Expr, axis: int, quarters: str) -> Expr:
    """Raises ExpressionFault for letters that are none, or not one for each place of the axis."""
    made = Factors(expr, axis, quarters)
    made.type  # noqa: B018 - its faults
    return made if quarters.strip("0") else expr

"""What a map computes, said once for every device: loops over the axes of a row, elements that are read, and statements on them.

A ``Part`` writes some elements of each row of the result: all of them, or, where values are joined, a piece. Axes that all
operands walk through in the same steps are one axis, so that most maps are one loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ferrum.codegen.kernels.elements import c_type, literal, result, statements
from ferrum.codegen.views import View, contiguous
from ferrum.graphs.ir import Region


@dataclass(frozen=True)
class Operand:
    """Elements that a part reads. ``arg``: the kernel's argument; ``row``: elements from one row to the next, 0 for one row."""

    arg: str
    dtype: str
    row: int
    offset: int
    strides: tuple[int, ...]

    @property
    def stored(self) -> str:
        """The C type in memory: parameters are floats whatever they mean, everything else is four bytes of its type."""
        return "float" if self.arg.startswith("weight:") else "int32_t" if c_type(self.dtype) == "int" else "float"

    def element(self, name: str) -> str:
        """The C expression that reads the element at the loops' indices."""
        terms = [f"i{axis} * {stride}" if stride != 1 else f"i{axis}" for axis, stride in enumerate(self.strides) if stride]
        terms += [str(self.offset)] if self.offset or not terms else []
        text = f"{name}[{' + '.join(terms)}]"
        if self.stored != "float" or self.dtype == "f32":
            return text
        return f"{text} != 0.0f" if self.dtype == "bool" else f"(int){text}"


@dataclass(frozen=True)
class Part:
    """One loop nest over ``dims``. ``strides`` and ``offset`` are those of the elements that it writes.

    ``region`` has an input for each operand; with none, ``index`` says what is written: (first, step) along the first axis.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    operands: tuple[Operand, ...]
    region: Region | None = None
    index: tuple[float, float] = (0.0, 0.0)
    dtype: str = "f32"

    @property
    def statements(self) -> list[str]:
        read = [operand.element(f"p{number}") for number, operand in enumerate(self.operands)]
        return list(statements(self.region, read)) if self.region is not None else []

    @property
    def value(self) -> str:
        """The C expression of what is written."""
        if self.region is not None:
            return result(self.region)
        if self.operands:
            return self.operands[0].element("p0")
        first, step = self.index if self.dims else (self.index[0], 0.0)  # one element has no loop
        if c_type(self.dtype) == "int":
            return f"{int(first)} + {int(step)} * i0" if step else str(int(first))
        start = literal(float(first), self.dtype)
        return f"{start} + {literal(float(step), self.dtype)} * (float)i0" if step else start

    @property
    def target(self) -> str:
        """The C expression of the place that is written."""
        terms = [f"i{axis} * {stride}" if stride != 1 else f"i{axis}" for axis, stride in enumerate(self.strides) if stride]
        return " + ".join(terms + ([str(self.offset)] if self.offset or not terms else []))

    @property
    def text(self) -> str:
        """Everything about it in one line."""
        reads = ", ".join(f"{o.arg} {o.dtype} {o.row}+{o.offset}{list(o.strides)}" for o in self.operands)
        does = "; ".join([*(text.removeprefix("const ").rstrip(";") for text in self.statements), self.value])
        return f"{self.dtype} {list(self.dims)} to {self.offset}{list(self.strides)} of ({reads}): {does}"


@dataclass(frozen=True)
class Body:
    """The parts of a map, in the order in which a row is written."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return " | ".join(part.text for part in self.parts)

    @property
    def operands(self) -> list[str]:
        """The arguments that are read, each once."""
        return list(dict.fromkeys(operand.arg for part in self.parts for operand in part.operands))


def merged(part: Part) -> Part:
    """``part`` with as few axes as say the same; those of one element are gone."""
    keep = [axis for axis, dim in enumerate(part.dims) if dim != 1]
    part = _picked(part, keep)
    axis = len(part.dims) - 1
    while axis > 0:
        size = part.dims[axis]
        if all(s[axis - 1] == size * s[axis] for s in (part.strides, *(o.strides for o in part.operands))):
            dims = (*part.dims[: axis - 1], part.dims[axis - 1] * size, *part.dims[axis + 1 :])
            part = replace(_picked(part, [a for a in range(len(part.dims)) if a != axis - 1]), dims=dims)
        axis -= 1
    return part


def _picked(part: Part, axes: Sequence[int]) -> Part:
    def pick(items: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(items[axis] for axis in axes)

    operands = tuple(replace(o, strides=pick(o.strides)) for o in part.operands)
    return replace(part, dims=pick(part.dims), strides=pick(part.strides), operands=operands)


def operand(view: View, arg: str) -> Operand:
    return Operand(arg, view.dtype, view.width if view.rows else 0, view.offset, view.strides)


def dense(dims: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """(strides of a row that is written whole, its elements)."""
    return contiguous(dims), math.prod(dims)

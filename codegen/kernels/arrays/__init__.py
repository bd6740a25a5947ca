"""Kernels that pick, place, order or multiply elements of each row: whatever no pattern of a model has a kernel of its own for.

A row is all that a value has for one token (or sample), four bytes an element. What an op does along an axis of a value it does
along an axis of each row; sizes are constants, and only how many rows there are is known to the step. CPUs only so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.moves import copied
from ferrum.codegen.views import View, row_axes, row_dims
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import integer

ELEMENT = 4  # bytes


@dataclass(frozen=True)
class Operand:
    """An array by its argument (``value:0``, ``weight:1``, ``input:positions``, ``result``): the axes of a row, in elements.

    ``row``: from one row to the next; 0 where all rows share one, as those of a parameter do.
    """

    arg: str
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    row: int
    offset: int = 0

    @property
    def name(self) -> str:
        axes = " ".join(f"{dim}*{stride}" for dim, stride in zip(self.dims, self.strides, strict=True))
        return f"{self.arg} {self.dtype} {self.row}+{self.offset} {axes}"

    @property
    def stored(self) -> bool:
        return self.arg.startswith("weight:")

    @property
    def type(self) -> str:
        """In C: parameters are floats whatever they mean, all other integers and truth values are int32."""
        return "float" if self.dtype == "f32" or self.stored else "int32_t"

    @property
    def size(self) -> int:
        """Elements of a row."""
        return math.prod(self.dims)

    @property
    def pointer(self) -> str:
        """Where the first row starts, as a C expression without a type."""
        kind, _, what = self.arg.partition(":")
        match kind:
            case "result":
                return "c->slot[l->out]"
            case "value":
                return "c->slot[l->in]" if what == "0" else f"c->slot[l->other[{int(what) - 1}]]"
            case "weight":
                return f"(c->config.weights + l->weight[{what}])"
        return f"c->step->{what}"

    def around(self, axis: int) -> tuple[int, int, int]:
        """How many elements are before, along and behind an axis."""
        return math.prod(self.dims[:axis]), self.dims[axis], math.prod(self.dims[axis + 1 :])


@dataclass(frozen=True)
class ArrayKernel(CpuKernel):
    """A kernel whose fields of the type ``Operand`` are what it reads and, the last of them, writes. Threads claim items."""

    @property
    def operands(self) -> tuple[Operand, ...]:
        found = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in found if isinstance(value, Operand))

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", *dict.fromkeys(operand.arg for operand in self.operands))

    @property
    def flops(self) -> int:
        """Operations a row."""
        return 0

    def cost(self) -> Cost:
        """What is read and written, and ``flops``."""
        stored, rows = (sum(ELEMENT * o.size for o in self.operands if o.stored is kind) for kind in (True, False))
        return Cost(stored, rows, self.flops)


def dense(walk: Walk, name: str, origin: str) -> View:
    """A value as elements of a row without gaps, copied where they lie otherwise."""
    view = walk.view(name)
    return view if view.packed(0) else walk.view(copied(walk, name, origin))


class Operands:
    """What a node reads, elements of a row without gaps (or ``views``, wherever they lie), and the call of its kernel."""

    def __init__(self, walk: Walk, node: Node, views: Sequence[View] | None = None) -> None:
        self.walk, self.node = walk, node
        self.values: list[str] = []
        self.params: list[str] = []
        given = [dense(walk, name, node.origin) for name in node.inputs] if views is None else views
        self.read = [self.operand(view) for view in given]

    def operand(self, view: View) -> Operand:
        if view.base in self.walk.given:
            arg = f"input:{view.base}"
        else:
            kind, names = ("weight", self.params) if view.base in self.walk.params else ("value", self.values)
            if view.base not in names:
                names.append(view.base)
            arg = f"{kind}:{names.index(view.base)}"
        return Operand(arg, view.dtype, view.dims, view.strides, view.width if view.rows else 0, view.offset)

    def result(self, output: int = 0) -> Operand:
        value = self.node.outputs[output]
        dims = row_dims(value.shape)
        strides = tuple(math.prod(dims[axis + 1 :]) for axis in range(len(dims)))
        return Operand("result", value.dtype, dims, strides, math.prod(dims))

    def axis(self, number: int | None = None) -> int:
        """The axis of a row that the node's attribute (or ``number``) names in its first input."""
        name = self.node.inputs[0]
        place = row_axes(self.walk.shapes[name])[integer(self.node.attrs, "axis") if number is None else number]
        assert place is not None, self.node  # what runs along the tokens is not paged
        return place

    def add(self, kernel: ArrayKernel, output: str = "") -> None:
        row_bytes = ELEMENT * kernel.operands[-1].size
        self.walk.add(self.node, kernel, tuple(self.values), tuple(self.params), row_bytes, output or None)

"""Kernels that pick, place, order or multiply elements of each row: whatever no pattern of a model has a kernel of its own for.

A row is all that a value has for one token (or sample), four bytes an element. What an op does along an axis of a value it does
along an axis of each row; sizes are constants, and only how many rows there are is known to the step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import Cost, Kernel
from ferrum.codegen.kernels.cases import Case
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import Geometry, GpuKernel, blocks_of, item_threads, parameter, parameters, per_item
from ferrum.codegen.kernels.trials import Lies, draw, rows_of
from ferrum.codegen.moves import copied
from ferrum.codegen.views import View, row_axes, row_dims
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import integer
from ferrum.pack.launches import Rows

ELEMENT = 4  # bytes
_SHORT = 64  # places of a stored axis in a trial


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

    @property
    def gpu_type(self) -> str:
        """``type`` in CUDA and Metal."""
        return "int" if self.type == "int32_t" else "float"

    @property
    def parameter(self) -> str:
        """``pointer`` in CUDA and Metal."""
        return parameter(self.arg) + (f" + {self.offset}" if self.offset else "")

    def lies(self, low: int = 0, high: int = 2) -> Lies:
        """Its elements in a trial; integers from ``low`` to before ``high``."""
        kind = "f32" if self.type == "float" else "i32"
        return Lies(self.arg, kind, self.row, self.offset, self.dims, self.strides, low, high)

    def around(self, axis: int) -> tuple[int, int, int]:
        """How many elements are before, along and behind an axis."""
        return math.prod(self.dims[:axis]), self.dims[axis], math.prod(self.dims[axis + 1 :])


class OperandKernel(Kernel):
    """A kernel whose fields of the type ``Operand`` are what it reads and, the last of them, writes."""

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


@dataclass(frozen=True)
class ArrayKernel(OperandKernel, CpuKernel):
    """A kernel over operands for CPUs. Threads claim items."""


@dataclass(frozen=True)
class ItemKernel(ArrayKernel, GpuKernel):
    """One for all devices. On GPUs a thread has an item of a row, usually an element of the result."""

    @property
    def items(self) -> int:
        return self.operands[-1].size

    @property
    def params_of_gpu(self) -> list[str]:
        """What the function of a GPU takes: operands, then arrays and words of the step."""
        typed = {operand.arg: operand.gpu_type for operand in self.operands}
        return parameters(dict.fromkeys(self.args[1:], "int") | typed)

    @property
    def threads(self) -> int:
        return item_threads(self.items)

    def geometry(self, rows: Rows) -> Geometry:
        return per_item(rows, self.items, self.threads)

    def context(self) -> dict[str, object]:
        blocks = blocks_of(self.items, self.threads)
        return {"params": self.params_of_gpu, "threads": self.threads, "items": self.items, "blocks": blocks}

    @abstractmethod
    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        """What becomes of the operands, each ``[rows, *dims]``."""

    @property
    def below(self) -> int:
        """Integers of a trial lie between it and its negative: places of an axis of so many."""
        return 5

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        lying = [operand.lies(-self.below, self.below) for operand in self.operands[:-1]]
        arrays = draw(random, lying, rows)
        found = self.reference(*(lies.seen(arrays[lies.arg], rows) for lies in lying))
        whole = self.operands[-1].type == "int32_t"
        return rows_of(arrays, found.astype(np.int32 if whole else np.float64))


def flat(array: NDArray[Any], around: tuple[int, int, int]) -> NDArray[Any]:
    """``[rows, *dims]`` with three axes of a row: before, along and behind the one that an op goes along."""
    return array.reshape(len(array), *around)


def inside(places: NDArray[Any], n: int) -> NDArray[Any]:
    """Places of an axis of ``n``: from its end where they are negative, and the nearest one inside."""
    at = places.astype(np.int64)
    return np.clip(np.where(at < 0, at + n, at), 0, n - 1)


def shorter(x: Operand, axis: int) -> Operand:
    """A stored operand with fewer places along its first axis, for trials."""
    if x.row or axis or not x.stored:
        return x
    return replace(x, dims=(min(x.dims[0], _SHORT), *x.dims[1:]))


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

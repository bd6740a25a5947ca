"""Products of arrays that are both computed: batches of matrices, which are broadcast against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands
from ferrum.codegen.views import View, broadcast, row_axes
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node, Shape


@dataclass(frozen=True)
class MatMul(ItemKernel):
    """Of each row ``a [.., m, k], b [.., k, n] -> [.., m, n]``, wherever elements lie; a stride of 0 is a broadcast.

    Each sum is made in the order of k or, where both lie along k, in one order of its parts: whatever other rows there are.
    """

    stem: ClassVar[str] = "matmul"
    a: Operand
    b: Operand
    out: Operand

    @property
    def flops(self) -> int:
        return 2 * self.out.size * self.a.dims[-1]

    def context(self) -> dict[str, object]:
        batch = zip(self.out.dims[:-2], self.a.strides[:-2], self.b.strides[:-2], strict=True)
        along = self.a.strides[-1] == self.b.strides[-2] == 1 and self.b.strides[-1] != 1
        return super().context() | {
            "batch": [axis for axis in batch if axis[0] != 1],
            "count": math.prod(self.out.dims[:-2]),
            "m": self.out.dims[-2],
            "k": self.a.dims[-1],
            "n": self.out.dims[-1],
            "along": along,
        }

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        left, right = (array.astype(np.float64) for array in read)
        return np.asarray(left @ right)

    def why(self) -> str:
        return "generic: columns side by side, in the order of k, read where they lie"


def choose(walk: Walk, node: Node) -> None:
    """The axis of tokens is one of the batch, or m or n: there is one of it in each row."""
    a, b = node.inputs
    shape = node.output.shape
    left = matrices(walk, a, (*shape[:-1], walk.shapes[a][-1]))
    right = matrices(walk, b, (*shape[:-2], walk.shapes[b][-2], shape[-1]))
    found = Operands(walk, node, [left, right])
    dims = (*left.dims[:-1], right.dims[-1])
    strides = tuple(math.prod(dims[axis + 1 :]) for axis in range(len(dims)))
    one, other = found.read
    found.add(MatMul(one, other, replace(found.result(), dims=dims, strides=strides)))


def matrices(walk: Walk, name: str, to: Shape) -> View:
    """A value as the matrices of a row, the last two axes always there."""
    view, places = broadcast(walk.view(name), walk.shapes[name], to), row_axes(to)
    kept = [place for place in places[:-2] if place is not None]
    axes = [(view.dims[at], view.strides[at]) if at is not None else (1, 0) for at in (*kept, *places[-2:])]
    return replace(view, dims=tuple(dim for dim, _ in axes), strides=tuple(stride for _, stride in axes))

"""``topk`` and ``sort``: the places of an axis in the order of their values, from which the values are gathered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands, dense, flat
from ferrum.codegen.kernels.arrays.gather import Gather
from ferrum.codegen.views import whole
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node

_FEW = 32  # so many places are kept in order while the axis is read once


@dataclass(frozen=True)
class Order(ItemKernel):
    """Of each row ``x [outer, n, inner] -> places [outer, k, inner]``, int32; equal values keep their order, NaN come last."""

    stem: ClassVar[str] = "order"
    x: Operand
    out: Operand
    axis: int
    descending: bool

    @property
    def k(self) -> int:
        return self.out.dims[self.axis]

    @property
    def few(self) -> bool:
        return self.k <= _FEW

    @property
    def flops(self) -> int:
        return self.x.size * (self.k if self.few else self.x.dims[self.axis].bit_length())

    @property
    def thread_bytes(self) -> int:
        return 0 if self.few else 2 * 4 * self.x.dims[self.axis]

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return super().context() | {"outer": outer, "n": n, "inner": inner, "k": self.k, "few": self.few}

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        x = flat(read[0], self.x.around(self.axis))
        return np.argsort(-x if self.descending else x, axis=2, kind="stable")[:, :, : self.k]

    @property
    def items(self) -> int:
        return self.x.size

    def why(self) -> str:
        return "generic: " + ("the first places are kept in order" if self.few else "runs are merged")


def choose(walk: Walk, node: Node) -> None:
    """A call for the places, and one for the values where they are read."""
    descending = node.op == "topk" or bool(node.attrs["descending"])
    values, places = node.outputs
    found = Operands(walk, node)
    axis = found.axis(len(values.shape) - 1 if node.op == "topk" else None)
    found.add(Order(found.read[0], found.result(1), axis, descending), places.name)
    if values.name in walk.users or values.name in walk.graph.outputs:
        out = found.result(1)
        at = whole(places.name, places.dtype, True, out.dims)
        both = Operands(walk, node, [dense(walk, node.inputs[0], node.origin), at])
        x, chosen = both.read
        both.add(Gather(x, chosen, both.result(), axis, chosen.dims[axis]), values.name)

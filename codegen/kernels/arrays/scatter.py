"""Values put, or added, where places along an axis say; of several for one place the last counts, or all in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands, flat, inside
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Scatter(ItemKernel):
    """Of each row ``x [outer, n, inner], places and values [outer, m, inner] -> [outer, n, inner]``; places as in ``Take``."""

    stem: ClassVar[str] = "scatter"
    x: Operand
    places: Operand
    values: Operand
    out: Operand
    axis: int
    adds: bool

    @property
    def flops(self) -> int:
        return self.values.size if self.adds else 0

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return super().context() | {"outer": outer, "n": n, "inner": inner, "m": self.places.dims[self.axis]}

    @property
    def below(self) -> int:
        return self.x.dims[self.axis]

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        operands = (self.x, self.places, self.values)
        x, places, values = (flat(array, o.around(self.axis)) for array, o in zip(read, operands, strict=True))
        out, at = np.array(x), inside(places, x.shape[2])
        for m in range(at.shape[2]):
            here, new = at[:, :, m : m + 1], values[:, :, m : m + 1]
            np.put_along_axis(out, here, np.take_along_axis(out, here, 2) + new if self.adds else new, 2)
        return out

    @property
    def items(self) -> int:
        return self.x.size // self.x.dims[self.axis]

    def why(self) -> str:
        return "generic: a thread has all of an axis, so that values come in their order"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places, values = found.read
    found.add(Scatter(x, places, values, found.result(), found.axis(), node.op == "scatter_add"))

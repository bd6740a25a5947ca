"""Values put, or added, where places along an axis say; of several for one place the last counts, or all in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Scatter(ArrayKernel):
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
        return {"outer": outer, "n": n, "inner": inner, "m": self.places.dims[self.axis]}

    def why(self) -> str:
        return "generic: a thread has all of an axis, so that values come in their order"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places, values = found.read
    found.add(Scatter(x, places, values, found.result(), found.axis(), node.op == "scatter_add"))

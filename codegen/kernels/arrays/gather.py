"""One element for each place along an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Gather(ArrayKernel):
    """Of each row ``x [outer, n, inner], places [outer, m, inner] -> [outer, m, inner]``; places as in ``Take``."""

    stem: ClassVar[str] = "gather"
    x: Operand
    places: Operand
    out: Operand
    axis: int

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return {"outer": outer, "n": n, "inner": inner, "m": self.places.dims[self.axis]}

    def why(self) -> str:
        return "generic: an element at a time"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places = found.read
    found.add(Gather(x, places, found.result(), found.axis()))

"""Places of an axis, chosen by numbers of any shape: rows of a stored table, or of what was computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Take(ArrayKernel):
    """Of each row ``x [outer, n, inner], places [m] -> [outer, m, inner]``; a place outside of n is the nearest one inside."""

    stem: ClassVar[str] = "take"
    x: Operand
    places: Operand
    out: Operand
    axis: int

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return {"outer": outer, "n": n, "inner": inner, "m": math.prod(self.places.dims)}

    def why(self) -> str:
        return "generic: elements that lie together are copied"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places = found.read
    found.add(Take(x, places, found.result(), found.axis()))

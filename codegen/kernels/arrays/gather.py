"""One element for each place along an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.views import row_axes
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import integer


@dataclass(frozen=True)
class Gather(ArrayKernel):
    """Of each row ``x [outer, n, inner], places [outer, m, inner] -> [outer, m, inner]``; places as in ``Take``."""

    stem: ClassVar[str] = "gather"
    x: Operand
    places: Operand
    out: Operand
    axis: int
    m: int

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return {"outer": outer, "n": n, "inner": inner}

    def why(self) -> str:
        return "generic: an element at a time"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places = found.read
    place = row_axes(walk.shapes[node.inputs[1]])[integer(node.attrs, "axis")]
    m = 1 if place is None else places.dims[place]  # places that lie along the tokens are one a row
    found.add(Gather(x, places, found.result(), found.axis(), m))

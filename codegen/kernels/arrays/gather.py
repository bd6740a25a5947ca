"""One element for each place along an axis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands, flat, inside, shorter
from ferrum.codegen.views import row_axes
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import integer


@dataclass(frozen=True)
class Gather(ItemKernel):
    """Of each row ``x [outer, n, inner], places [outer, m, inner] -> [outer, m, inner]``; places as in ``Take``."""

    stem: ClassVar[str] = "gather"
    x: Operand
    places: Operand
    out: Operand
    axis: int
    m: int

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return super().context() | {"outer": outer, "n": n, "inner": inner}

    @property
    def below(self) -> int:
        return self.x.dims[self.axis]

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        outer, n, inner = self.x.around(self.axis)
        at = flat(read[1], (outer, self.m, inner))
        return np.take_along_axis(flat(read[0], (outer, n, inner)), inside(at, n), 2)

    def reduced(self) -> Gather:
        return replace(self, x=shorter(self.x, self.axis))

    def why(self) -> str:
        return "generic: an element at a time"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places = found.read
    place = row_axes(walk.shapes[node.inputs[1]])[integer(node.attrs, "axis")]
    m = 1 if place is None else places.dims[place]  # places that lie along the tokens are one a row
    found.add(Gather(x, places, found.result(), found.axis(), m))

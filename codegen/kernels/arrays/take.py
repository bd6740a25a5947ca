"""Places of an axis, chosen by numbers of any shape: rows of a stored table, or of what was computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands, flat, inside, shorter
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Take(ItemKernel):
    """Of each row ``x [outer, n, inner], places [m] -> [outer, m, inner]``; a place outside of n is the nearest one inside."""

    stem: ClassVar[str] = "take"
    x: Operand
    places: Operand
    out: Operand
    axis: int

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return super().context() | {"outer": outer, "n": n, "inner": inner, "m": math.prod(self.places.dims)}

    @property
    def below(self) -> int:
        return self.x.dims[self.axis]

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        x, places = flat(read[0], self.x.around(self.axis)), read[1].reshape(len(read[1]), 1, -1, 1)
        at = np.broadcast_to(inside(places, x.shape[2]), (*x.shape[:2], places.shape[2], x.shape[3]))
        return np.take_along_axis(x, at, 2)

    def reduced(self) -> Take:
        return replace(self, x=shorter(self.x, self.axis))

    def why(self) -> str:
        return "generic: elements that lie together are copied"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, places = found.read
    found.add(Take(x, places, found.result(), found.axis()))

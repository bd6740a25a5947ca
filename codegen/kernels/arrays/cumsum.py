"""Sums of an axis up to each of its places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands, flat
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Cumsum(ItemKernel):
    """Of each row ``x [outer, n, inner] -> [outer, n, inner]``, added one after the other in the type of x."""

    stem: ClassVar[str] = "cumsum"
    x: Operand
    out: Operand
    axis: int

    @property
    def flops(self) -> int:
        return self.x.size

    def context(self) -> dict[str, object]:
        outer, n, inner = self.x.around(self.axis)
        return super().context() | {"outer": outer, "n": n, "inner": inner}

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        return np.cumsum(flat(read[0], self.x.around(self.axis)), axis=2)

    @property
    def items(self) -> int:
        return self.x.size // self.x.dims[self.axis]

    def why(self) -> str:
        return "generic: sums in order, side by side"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    found.add(Cumsum(found.read[0], found.result(), found.axis()))

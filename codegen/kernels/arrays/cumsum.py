"""Sums of an axis up to each of its places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Cumsum(ArrayKernel):
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
        return {"outer": outer, "n": n, "inner": inner}

    def why(self) -> str:
        return "generic: sums in order, side by side"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    found.add(Cumsum(found.read[0], found.result(), found.axis()))

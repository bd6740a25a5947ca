"""One row of each sequence from the rows of its tokens. CPUs only so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ArrayKernel, Operand, Operands
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Pool(ArrayKernel):
    """``x [tokens, width], rows [samples] -> [samples, width]``: each result of the sequence that its row is in, ``how`` as
    ``ferrum/graphs/infer_pool.py`` has it."""

    stem: ClassVar[str] = "pool"
    elements: ClassVar[bool] = True
    x: Operand
    rows: Operand
    out: Operand
    how: str

    @property
    def flops(self) -> int:
        return self.x.size

    def context(self) -> dict[str, object]:
        return {"width": self.x.size}

    def why(self) -> str:
        return f"generic: {self.how} of a sequence's rows, columns side by side"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, rows = found.read
    found.add(Pool(x, rows, found.result(), str(node.attrs["how"])))

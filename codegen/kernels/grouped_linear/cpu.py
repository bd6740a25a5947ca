"""The product on CPUs: that of ``linear`` for each run of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.linear.cpu import CpuLinear


@dataclass(frozen=True, kw_only=True)
class CpuGroupedLinear(CpuLinear):
    """``rows [rows, k]`` in the order of a list, the list, ``count`` matrices -> ``[rows, n]`` in the rows' own order.

    ``times``: how many of these rows there are for each row of a step.
    """

    stem: ClassVar[str] = "grouped_linear"
    reads_private: ClassVar[bool] = False
    count: int
    times: int

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "value:1", "weight:0", "result")

    def cost(self) -> Cost:
        """Weights of as many matrices as one row of a step has: what more rows read depends on how alike they choose."""
        moved = self.act.row_bytes(self.k) + 4 * self.n
        weights = min(self.times, self.count) * self.weight.nbytes
        return Cost(weights, self.times * moved, 2 * self.times * self.n * self.k)

    def why(self) -> str:
        return f"{self.count} matrices, each read once for the rows that name it: {super().why()}"

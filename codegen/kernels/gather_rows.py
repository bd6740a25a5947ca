"""The rows that are sampled, before the final norm: the LM head never sees the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost
from ferrum.codegen.kernels.cases import Case, counts, normal, rows_case
from ferrum.codegen.kernels.rows import RowKernel, narrower
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class GatherRows(RowKernel):
    """``x [tokens, k], rows [samples] -> [samples, k]``, float32."""

    stem: ClassVar[str] = "gather_rows"
    row_wise: ClassVar[bool] = True
    k: int

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "input:sample_rows", "value:0", "result")

    @property
    def tolerance(self) -> float:
        return 0.0

    def cost(self) -> Cost:
        return Cost(0, 8 * self.k, 0)

    def why(self) -> str:
        return "only rows whose logits are wanted reach the final norm and the LM head"

    @staticmethod
    def reference(x: F32, rows: NDArray[np.int32]) -> F32:
        return x[rows]

    def case(self, random: np.random.Generator, **_: Any) -> Case:
        x, rows = normal(random, 7, self.k), np.array([0, 4, 6], np.int32)
        arrays = {"value:0": x, "input:sample_rows": rows}
        return rows_case(arrays, self.reference(x, rows), of="samples", rows=counts(7, samples=3))

    reduced = narrower


def choose(walk: Walk, node: Node) -> None:
    k = walk.width(node.output.name)
    walk.add(node, GatherRows(k), node.inputs[:1], (), 4 * k)

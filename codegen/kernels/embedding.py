"""Token embedding: rows of the table as float32, read from whatever layout the table has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, factor
from ferrum.codegen.kernels.cases import Case, normal, rows_case
from ferrum.codegen.kernels.linear.gpu import smaller_matrix
from ferrum.codegen.kernels.rows import RowKernel
from ferrum.codegen.layouts import RowLayout, TiledLayout, stored
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Embedding(RowKernel):
    """``tokens [T] -> [T, k]`` from a table ``[n, k]``."""

    stem: ClassVar[str] = "embedding"
    n: int
    k: int
    weight: TiledLayout | RowLayout
    scale: float

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "input:tokens", "weight:0", "result")

    def cost(self) -> Cost:
        return Cost(0, self.k * self.weight.format.bits // 8 + 4 * self.k, self.k)

    def why(self) -> str:
        return f"rows of {self.weight.format.name} are decoded where they lie, so that a tied LM head needs no second copy"

    def context(self) -> dict[str, object]:
        return super().context() | {"scale_text": factor(self.scale)}

    @staticmethod
    def reference(tokens: NDArray[np.int32], table: F32, scale: float) -> F32:
        return table[tokens] * np.float32(scale)

    def case(self, random: np.random.Generator, **_: Any) -> Case:
        assert isinstance(self.weight, RowLayout)
        raw = stored(normal(random, self.n, self.k), self.weight)
        ids = np.array([0, self.n - 1, *random.integers(0, self.n, 5)], np.int32)
        table = self.weight.decode(raw.data)
        return rows_case({"weight:0": raw, "input:tokens": ids}, self.reference(ids, table, self.scale))

    def reduced(self) -> Embedding:
        assert isinstance(self.weight, RowLayout)
        layout = smaller_matrix(self.weight)
        return replace(self, n=layout.n, k=layout.k, weight=layout)


def choose(walk: Walk, node: Node) -> None:
    layout = walk.layout(node.inputs[1])
    kernel = Embedding(layout.n, layout.k, layout, float(number(node, "scale", 1.0)))
    walk.add(node, kernel, (), node.inputs[1:2], 4 * layout.k)

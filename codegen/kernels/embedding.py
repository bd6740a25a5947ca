"""Token embedding: rows of the table as float32, read from whatever layout the table has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, factor
from ferrum.codegen.kernels.cases import Case, normal, rows_case
from ferrum.codegen.kernels.linear.gpu import smaller_matrix
from ferrum.codegen.kernels.rows import RowKernel
from ferrum.codegen.layouts import RowLayout, TiledLayout, stored
from ferrum.codegen.moves import in_order
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Embedding(RowKernel):
    """``ids [T] -> [T, k]`` from a table ``[n, k]``; ``ids``: the argument that has them, the step's tokens or others."""

    stem: ClassVar[str] = "embedding"
    n: int
    k: int
    weight: TiledLayout | RowLayout
    scale: float
    ids: str = field(default="input:tokens", kw_only=True)

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", self.ids, "weight:0", "result")

    def cost(self) -> Cost:
        return Cost(0, self.k * self.weight.format.bits // 8 + 4 * self.k, self.k)

    def why(self) -> str:
        return f"rows of {self.weight.format.name} are decoded where they lie, so that a tied LM head needs no second copy"

    def context(self) -> dict[str, object]:
        kind, _, name = self.ids.partition(":")
        place = f"c->step->{name}[row]" if kind == "input" else "((const int32_t *)c->slot[l->in])[row]"
        return super().context() | {"scale_text": factor(self.scale), "id": place}

    @staticmethod
    def reference(tokens: NDArray[np.int32], table: F32, scale: float) -> F32:
        return table[tokens] * np.float32(scale)

    def case(self, random: np.random.Generator, **_: Any) -> Case:
        assert isinstance(self.weight, RowLayout)
        raw = stored(normal(random, self.n, self.k), self.weight)
        ids = np.array([0, self.n - 1, *random.integers(0, self.n, 5)], np.int32)
        table = self.weight.decode(raw.data)
        return rows_case({"weight:0": raw, self.ids: ids}, self.reference(ids, table, self.scale))

    def reduced(self) -> Embedding:
        assert isinstance(self.weight, RowLayout)
        layout = smaller_matrix(self.weight)
        return replace(self, n=layout.n, k=layout.k, weight=layout)


def choose(walk: Walk, node: Node) -> None:
    layout, view = walk.layout(node.inputs[1]), walk.view(node.inputs[0])
    given = view.plain and view.base in walk.given
    ids = f"input:{view.base}" if given else "value:0"
    kernel = Embedding(layout.n, layout.k, layout, float(number(node, "scale", 1.0)), ids=ids)
    values = () if given else (in_order(walk, node.inputs[0], node.origin),)
    walk.add(node, kernel, values, node.inputs[1:2], 4 * layout.k)

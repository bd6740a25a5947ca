"""The product on GPUs: a warp for each number of the result, which reads the row of the matrix that its row names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.arrays import Operand, OperandKernel
from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cases import Case, normal
from ferrum.codegen.kernels.gpu import WARP, Geometry, GpuKernel, blocks_of, parameter, parameters, per_item
from ferrum.codegen.kernels.linear.gpu import smaller_matrix
from ferrum.codegen.kernels.trials import draw, rows_of
from ferrum.codegen.layouts import RowLayout, stored
from ferrum.pack.launches import Rows

_WARPS = 4
_FEW = 4  # matrices of a trial


@dataclass(frozen=True)
class PlainGroupedLinear(OperandKernel, GpuKernel):
    """``x [.., k]``, wherever rows lie, ``group [..]``, numbers below ``matrices``, so many matrices ``[n, k]`` -> ``[.., n]``.

    Rows are not rounded: each value of a matrix is unpacked where it is needed.
    """

    stem: ClassVar[str] = "grouped_linear_plain"
    n: int
    k: int
    weight: RowLayout
    matrices: int
    x: Operand
    group: Operand
    out: Operand

    @property
    def stack(self) -> str:
        """The argument of the matrices: behind what else is stored."""
        return f"weight:{len({operand.arg for operand in self.operands if operand.stored})}"

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, self.stack)

    @property
    def times(self) -> int:
        """Rows to be multiplied for each row of a step."""
        return math.prod(self.x.dims[:-1])

    def geometry(self, rows: Rows) -> Geometry:
        return per_item(rows, self.times * self.n * WARP, _WARPS * WARP)

    def cost(self) -> Cost:
        weights = min(self.times, self.matrices) * self.weight.nbytes
        return Cost(weights, 4 * self.times * (self.k + self.n), 2 * self.times * self.n * self.k)

    def why(self) -> str:
        return f"generic: {self.matrices} matrices, of which a warp reads a row for each number of the result"

    def context(self) -> dict[str, object]:
        typed = {operand.arg: operand.gpu_type for operand in self.operands} | {self.stack: "u8"}
        axes = zip(self.x.dims[:-1], self.x.strides[:-1], strict=True)
        return {
            "params": parameters(typed),
            "stack": parameter(self.stack),
            "times": self.times,
            "warps": _WARPS,
            "blocks": blocks_of(self.times * self.n, _WARPS),
            "axes": [axis for axis in axes if axis[0] != 1],
        }

    def reduced(self) -> PlainGroupedLinear:
        layout = smaller_matrix(self.weight)
        x = replace(self.x, dims=(*self.x.dims[:-1], layout.k))
        return replace(self, n=layout.n, k=layout.k, weight=layout, matrices=min(self.matrices, _FEW), x=x)

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        stack = [stored(normal(random, self.n, self.k), self.weight) for _ in range(self.matrices)]
        lying = self.x.lies(), self.group.lies(0, self.matrices)
        arrays = draw(random, lying, rows) | {self.stack: np.concatenate(stack)}
        x, group = (lies.seen(arrays[lies.arg], rows) for lies in lying)
        weights = np.stack([self.weight.decode(raw.data) for raw in stack]).astype(np.float64)
        each = x.reshape(rows, self.times, self.k).astype(np.float64)
        found = [weights[int(number)] @ row for number, row in zip(group.reshape(-1), each.reshape(-1, self.k), strict=True)]
        return rows_of(arrays, np.stack(found).reshape(rows, -1))

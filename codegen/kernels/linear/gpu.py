"""What the matrix products for GPUs share: formats, epilogue, cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cases import Case, counts, normal, rows_case, rows_in
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.linear import Linear
from ferrum.codegen.layouts import RowLayout, stored
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.graphs.ops import GATES

Self = TypeVar("Self", bound="GpuLinear")


@dataclass(frozen=True)
class GpuLinear(Linear, GpuKernel):
    """Weights in fp8 are unpacked to bfloat16 like all others (W8A16), and the scales of their rows multiply the finished sums.

    bfloat16 holds every e4m3 number, so batches of every size compute with the same values, and activations lose nothing. Moving
    the bits and one product with 2^120 are four instructions for two weights on any GPU; the conversion of sm_89 and later ends
    in float16 and takes as many to bfloat16.

    ``out`` is the format of the result: f32 rows follow each other without gaps, bf16 rows are those of a product's input.
    """

    weight: RowLayout
    out: str

    @property
    def act(self) -> ActFormat:
        """The format of x."""
        return ActFormat("f32" if self.weight.format.kind == "f32" else "bf16")

    @property
    def case_rows(self) -> int:
        """Rows of the size class, or enough to go round once."""
        return 5

    @property
    def out_bytes(self) -> int:
        return ActFormat(self.out).stride_bytes(self.n_out)

    def cost(self) -> Cost:
        reads = self.act.stride_bytes(self.k) + (4 * self.n_out if self.residual else 0)
        return Cost(self.weight.nbytes, reads + self.out_bytes, 2 * self.n * self.k)

    def context(self) -> dict[str, object]:
        return {
            "f": self.weight.format,
            "gate_function": GATES.get(self.activation, ""),
            "n_out": self.n_out,
            "x_stride": self.act.row_stride(self.k),
            "out_stride": ActFormat(self.out).row_stride(self.n_out),
            "subs": max(1, self.weight.chunk_k // 32),
        }

    def case(self, random: np.random.Generator, rows: int = 0, limit: int = 0, **_: Any) -> Case:
        """``rows`` 0 takes one less than the size class has, ``limit`` is the recording's rows."""
        rows = rows or max(1, self.case_rows - 1)
        raw = stored(normal(random, self.n, self.k), self.weight)
        w = self.weight.decode(raw.data)
        x, meant = rows_in(normal(random, rows, self.k), self.act.kind)
        bias, residual = normal(random, self.n), normal(random, rows, self.n_out)
        expected = self.reference(meant, w, bias if self.bias else None, residual if self.residual else None, self.activation)
        arrays = {"weight:0": raw, "value:0": x, "weight:1": bias, "value:1": residual, "count": np.array([rows], np.int32)}
        if self.residual:  # the sum takes the place of what it is added to
            arrays["result"] = residual
        return rows_case(arrays, expected, self.out, rows=counts(max(rows, limit)))

    def reduced(self: Self) -> Self:
        layout = smaller_matrix(self.weight)
        return replace(self, n=layout.n, k=layout.k, weight=layout)


def smaller_matrix(layout: RowLayout) -> RowLayout:
    """A few tiles that are not all full, and whole groups where the layout has them."""
    n = min(layout.n, 16 * layout.halves * 3 + 5 * layout.halves)
    k = layout.k if layout.k <= 512 else 512 if layout.k % 512 == 0 else 512 - 8
    group = layout.format.group
    k = -(-k // group) * group if group and layout.k % group == 0 else k
    return replace(layout, n=n, k=k)

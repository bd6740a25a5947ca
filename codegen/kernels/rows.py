"""Kernels that take each row alone, on every device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import Geometry, GpuKernel, per_row, row_threads
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import Rows


class RowKernel(CpuKernel, GpuKernel):
    """On GPUs a block takes a row of ``k`` values, on CPUs a thread takes a few rows at a time."""

    k: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return row_threads(self.k)

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, self.threads)

    def context(self) -> dict[str, object]:
        return {"threads": self.threads}


class ActRows(RowKernel):
    """``x [rows, k] float32 -> act [rows, k]``, as the next product reads them; so cheap that every thread does few rows."""

    row_wise: ClassVar[bool] = True
    reads_private: ClassVar[bool] = True
    act: ActFormat

    @property
    def stored(self) -> str:
        """What becomes of the rows, in words."""
        return "kept in float32" if self.act.kind == "f32" else f"stored as {self.act.name} for the product that reads it"

    def context(self) -> dict[str, object]:
        per_thread = -(-self.k // self.threads)
        return super().context() | {"per_thread": per_thread, "stride": self.act.row_stride(self.k)}

    def row_cost(self, weights: int, flops: int) -> Cost:
        """Rows are read and stored once; of each channel there are ``weights`` float32 and ``flops`` operations."""
        return Cost(4 * self.k * weights, 4 * self.k + self.act.row_bytes(self.k), flops * self.k)


def narrower(kernel: Any) -> Any:
    """The kernel with rows of at most 1024 values."""
    return replace(kernel, k=min(kernel.k, 1024))

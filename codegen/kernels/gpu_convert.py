"""Rows of float32 in the format of the product that reads them, on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.formats import ActFormat
from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.gpu_base import Geometry, GpuKernel, per_row, row_bytes, row_stride, row_threads
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.pack.launches import Rows


@dataclass(frozen=True)
class GpuConvert(GpuKernel):
    """``x [rows, k] float32 -> act [rows, k]``."""

    stem: ClassVar[str] = "gpu_convert"
    reference = staticmethod(Quantize.reference)
    k: int
    act: ActFormat

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "result")

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, row_threads(self.k))

    def cost(self) -> Cost:
        return Cost(0, 4 * self.k + row_bytes(self.act.kind, self.k), self.k)

    def why(self) -> str:
        return f"{self.k} channels to {self.act.name}: their producer has other readers too"

    def context(self) -> dict[str, object]:
        return {"threads": row_threads(self.k), "stride": row_stride(self.act.kind, self.k)}

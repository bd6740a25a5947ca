"""LayerNorm over rows on GPUs, stored in the format of the product that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.formats import ActFormat
from ferrum.codegen.kernels.base import Cost, c_float
from ferrum.codegen.kernels.gpu_base import Geometry, GpuKernel, per_row, row_bytes, row_stride, row_threads
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.pack.launches import Rows


@dataclass(frozen=True)
class GpuLayerNorm(GpuKernel):
    """``x [rows, k] float32 -> act [rows, k]``; weight ``[k]`` and, with ``bias``, a bias ``[k]``, float32."""

    stem: ClassVar[str] = "gpu_layer_norm"
    reference = staticmethod(LayerNorm.reference)
    k: int
    eps: float
    bias: bool
    act: ActFormat

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "weight:0", *(("weight:1",) if self.bias else ()), "result")

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, row_threads(self.k))

    def cost(self) -> Cost:
        return Cost(4 * self.k * (1 + self.bias), 4 * self.k + row_bytes(self.act.kind, self.k), 7 * self.k)

    def why(self) -> str:
        return f"one block a row of {self.k}, read once, stored as {self.act.name} for the product that reads it"

    def context(self) -> dict[str, object]:
        threads = row_threads(self.k)
        return {
            "threads": threads,
            "stride": row_stride(self.act.kind, self.k),
            "per_thread": -(-self.k // threads),
            "eps": c_float(self.eps),
        }

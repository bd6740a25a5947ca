"""cos and sin of every new token's position on GPUs, once per step for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.base import Cost, c_float
from ferrum.codegen.kernels.gpu_base import Geometry, GpuKernel, per_row, row_threads
from ferrum.codegen.kernels.rope_table import RopeTable
from ferrum.pack.launches import Rows


@dataclass(frozen=True)
class GpuRopeTable(GpuKernel):
    """``positions [T], frequency [half] -> [T, 2 * half]`` float32: cosines, then sines; ``scale`` multiplies both."""

    stem: ClassVar[str] = "gpu_rope_table"
    reference = staticmethod(RopeTable.reference)
    half: int
    scale: float

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "input:positions", "weight:0", "result")

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, row_threads(self.half, 64))

    def cost(self) -> Cost:
        return Cost(4 * self.half, 8 * self.half, 40 * self.half)

    def why(self) -> str:
        return "sines and cosines are computed once per token and step, not once per layer"

    def context(self) -> dict[str, object]:
        scale = "" if self.scale == 1.0 else f" * {c_float(self.scale)}f"
        return {"threads": row_threads(self.half, 64), "scale_text": scale}

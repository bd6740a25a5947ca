"""Token embedding on GPUs: rows of the table as float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.base import Cost, c_float
from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.gpu_base import Geometry, GpuKernel, per_row, row_threads
from ferrum.codegen.layouts import RowLayout
from ferrum.pack.launches import Rows


@dataclass(frozen=True)
class GpuEmbedding(GpuKernel):
    """``tokens [T] -> [T, k]`` from a table ``[n, k]``."""

    stem: ClassVar[str] = "gpu_embedding"
    reference = staticmethod(Embedding.reference)
    n: int
    k: int
    weight: RowLayout
    scale: float

    @property
    def params(self) -> dict[str, int | float | str | bool]:
        return super().params | {"format": self.weight.format.name}

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "input:tokens", "weight:0", "result")

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, row_threads(self.k))

    def cost(self) -> Cost:
        return Cost(0, self.k * self.weight.format.bits // 8 + 4 * self.k, self.k)

    def why(self) -> str:
        return f"rows of {self.weight.format.name} are decoded from the table, so that a tied LM head needs no second copy"

    def context(self) -> dict[str, object]:
        return {"threads": row_threads(self.k), "scale_text": "" if self.scale == 1.0 else f" * {c_float(self.scale)}f"}

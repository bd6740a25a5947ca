"""The rows that are sampled, on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.gather_rows import GatherRows
from ferrum.codegen.kernels.gpu_base import Geometry, GpuKernel, per_row, row_threads
from ferrum.pack.launches import Rows


@dataclass(frozen=True)
class GpuGatherRows(GpuKernel):
    """``x [tokens, k], rows [samples] -> [samples, k]``, float32."""

    stem: ClassVar[str] = "gpu_gather_rows"
    reference = staticmethod(GatherRows.reference)
    k: int

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "input:sample_rows", "value:0", "result")

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, row_threads(self.k))

    def cost(self) -> Cost:
        return Cost(0, 8 * self.k, 0)

    def why(self) -> str:
        return "only rows whose logits are wanted reach the final norm and the LM head"

    def context(self) -> dict[str, object]:
        return {"threads": row_threads(self.k)}

"""Matrix product with float32 weights on GPUs: a warp per output channel, no matrix instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.gpu import ONE, WARP, Geometry
from ferrum.codegen.kernels.linear.gpu import GpuLinear
from ferrum.pack.launches import Rows, Term

_WARPS = 4


@dataclass(frozen=True)
class PlainLinear(GpuLinear):
    """Each warp computes one output channel (a pair of them for gate and up) of ``rows_at_once`` rows."""

    stem: ClassVar[str] = "linear_plain"
    rows_at_once: int

    def geometry(self, rows: Rows) -> Geometry:
        outputs = Term("one", -(-self.n_out // _WARPS))
        return Geometry(((outputs,), (Term(rows, 1, self.rows_at_once),), ONE), (WARP * _WARPS, 1, 1))

    def why(self) -> str:
        return f"float32 weights are for checking: a warp per channel, {self.rows_at_once} rows share its weights"

    def context(self) -> dict[str, object]:
        return super().context() | {"warps": _WARPS}

"""Matrix product of many rows on GPUs: tiles of weights and rows through shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.gpu_base import ONE, WARP, Geometry
from ferrum.codegen.kernels.gpu_matrix import GpuMatrix
from ferrum.codegen.layouts import TILE_ROWS
from ferrum.pack.launches import Rows, Term

# Bytes of a row of weights or of x that one stage holds.
_PIECE = 64


@dataclass(frozen=True)
class GpuLargeLinear(GpuMatrix):
    """Tiles of ``block_n`` weight rows by ``block_m`` rows of x; ``warps_n`` by two warps.

    Unpacking takes registers: packed formats want more warps, with fewer sums each. ``stages`` pieces of 32 K of x are in
    shared memory, and the chunks of weights that belong to them.
    """

    stem: ClassVar[str] = "gpu_large_linear"
    block_n: int
    block_m: int
    warps_n: int
    stages: int

    @property
    def weight_stages(self) -> int:
        """Chunks of weights that the pieces of x in shared memory touch, at most."""
        subs = max(1, self.weight.chunk_k // 32)
        return -(-(self.stages - 1) // subs) + 1

    @property
    def warps(self) -> int:
        return 2 * self.warps_n

    def geometry(self, rows: Rows) -> Geometry:
        ring = _PIECE * (self.stages * self.block_m + self.weight_stages * self.block_n)
        sums = 4 * self.warps * 8 * (self.block_n // self.warps_n + 4)
        grid = ((Term(rows, 1, self.block_m),), (Term("one", -(-self.weight.padded_n // self.block_n)),), ONE)
        return Geometry(grid, (WARP * self.warps, 1, 1), max(ring, sums))

    def why(self) -> str:
        return (
            f"{self.weight.format.name} weights and rows meet in tiles of {self.block_n} x {self.block_m}, {self.stages} copies "
            "deep; neighbouring blocks share their weights in the cache"
        )

    def expects(self) -> dict[str, int]:
        return {"HMMA": 2 * (self.block_n // self.warps_n // TILE_ROWS) * (self.block_m // 16), "LDGSTS": 4}

    def context(self) -> dict[str, object]:
        return super().context() | {
            "weight_stages": self.weight_stages,
            "warps": self.warps,
            "n_tiles": self.block_n // self.warps_n // TILE_ROWS,
            "m_tiles": self.block_m // 2 // 8,
        }

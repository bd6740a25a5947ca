"""Matrix product of up to 64 rows on GPUs: weights pass once from memory to the matrix instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.gpu_base import ONE, WARP, Geometry, Scratch
from ferrum.codegen.kernels.gpu_matrix import GpuMatrix
from ferrum.codegen.layouts import TILE_ROWS
from ferrum.pack.launches import Rows, Term

# Floats between the rows of the reduction in shared memory: lanes of a fragment fall into different banks.
_PAD = 4


@dataclass(frozen=True)
class GpuSmallLinear(GpuMatrix):
    """Weights are the left operand, ``8 * row_tiles`` rows of x the right one.

    A warp takes ``weight_tiles`` tiles of 16 weight rows; ``warps`` warps and ``splits`` blocks share K, chunk by chunk, and are
    summed in a fixed order. Each lane copies just the bytes that it will use, ``stages`` chunks ahead, so no barrier is needed.
    """

    stem: ClassVar[str] = "gpu_small_linear"
    row_tiles: int
    weight_tiles: int
    warps: int
    splits: int
    stages: int

    @property
    def args(self) -> tuple[str, ...]:
        merge = ("scratch:linear_parts", "scratch:linear_arrivals") if self.splits > 1 else ()
        return (*super().args, *merge)

    @property
    def blocks(self) -> int:
        return -(-self.weight.tiles // self.weight_tiles)

    @property
    def sum_stride(self) -> int:
        return TILE_ROWS * self.weight_tiles + _PAD

    @property
    def part_floats(self) -> int:
        return 8 * self.row_tiles * TILE_ROWS * self.weight_tiles

    def geometry(self, rows: Rows) -> Geometry:
        ring = self.warps * self.stages * self.weight_tiles * TILE_ROWS * 64
        sums = 4 * self.warps * 8 * self.row_tiles * self.sum_stride
        grid = ((Term("one", self.blocks),), (Term("one", self.splits),), ONE)
        return Geometry(grid, (WARP * self.warps, 1, 1), max(ring, sums))

    def scratch(self) -> dict[str, Scratch]:
        if self.splits == 1:
            return {}
        return {
            "linear_parts": Scratch((Term("one", 4 * self.blocks * self.splits * self.part_floats),)),
            "linear_arrivals": Scratch((Term("one", 4 * self.blocks),), zero=True),
        }

    def why(self) -> str:
        split = f", K in {self.splits} splits because {self.blocks} blocks alone leave the GPU empty" if self.splits > 1 else ""
        return (
            f"{self.weight.format.name} weights are read once and unpacked into the matrix instructions' own registers; up to "
            f"{8 * self.row_tiles} rows, {self.warps} warps share K{split}"
        )

    def expects(self) -> dict[str, int]:
        return {"HMMA": 2 * self.row_tiles * self.weight_tiles, "LDGSTS": 2 * self.weight_tiles}

    def context(self) -> dict[str, object]:
        group = self.weight.format.group
        return super().context() | {
            "sum_stride": self.sum_stride,
            "part_floats": self.part_floats,
            # consecutive pieces of 32 K in a chunk that share their scales
            "group_subs": min(max(1, self.weight.chunk_k // 32), group // 32) if group else 1,
        }

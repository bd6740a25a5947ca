"""cos and sin of every new token's position, once per step for all layers (Su et al., RoFormer, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, factor
from ferrum.codegen.kernels.cases import Case, rows_case
from ferrum.codegen.kernels.gpu import row_threads
from ferrum.codegen.kernels.rows import RowKernel


@dataclass(frozen=True)
class RopeTable(RowKernel):
    """``positions [T], frequency [half] -> [T, 2 * half]`` float32: cosines, then sines.

    ``scale`` multiplies both (YaRN's attention factor).
    """

    stem: ClassVar[str] = "rope_table"
    half: int
    scale: float

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "input:positions", "weight:0", "result")

    @property
    def threads(self) -> int:
        return row_threads(self.half, 64)

    def cost(self) -> Cost:
        return Cost(4 * self.half, 8 * self.half, 40 * self.half)

    def why(self) -> str:
        return "sines and cosines are computed once per token and step, not once per layer"

    def context(self) -> dict[str, object]:
        return super().context() | {"scale_text": factor(self.scale)}

    @staticmethod
    def reference(positions: NDArray[np.int32], frequency: F32, scale: float) -> F32:
        angle = positions[:, None].astype(np.float32) * frequency
        return np.concatenate([np.cos(angle), np.sin(angle)], -1) * np.float32(scale)

    def case(self, random: np.random.Generator, **_: Any) -> Case:
        positions = np.array([0, 1, 31, 1000, 100_000], np.int32)
        frequency = (10000.0 ** -np.linspace(0, 1, self.half, dtype=np.float32)).astype(np.float32)
        arrays = {"input:positions": positions, "weight:0": frequency}
        return rows_case(arrays, self.reference(positions, frequency, self.scale))

"""cos and sin of every new token's position, once per step for all layers (Su et al., RoFormer, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, Kernel, c_float


@dataclass(frozen=True)
class RopeTable(Kernel):
    """``positions [T], frequency [half] -> [T, 2 * half]``; ``scale`` multiplies both (YaRN's attention factor)."""

    stem: ClassVar[str] = "rope_table"
    half: int
    scale: float

    def cost(self) -> Cost:
        return Cost(4 * self.half, 8 * self.half, 40 * self.half)

    def why(self) -> str:
        return "sines and cosines are computed once per token and step, not once per layer"

    def context(self) -> dict[str, object]:
        return {"scale_text": "" if self.scale == 1.0 else f" * {c_float(self.scale)}f"}

    @staticmethod
    def reference(positions: NDArray[np.int32], frequency: F32, scale: float) -> F32:
        angle = positions[:, None].astype(np.float32) * frequency
        return np.concatenate([np.cos(angle), np.sin(angle)], -1) * np.float32(scale)

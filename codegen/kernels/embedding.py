"""Token embedding: rows of the table as float32, read from whatever layout the table has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, Kernel, c_float
from ferrum.codegen.layouts import TiledLayout


@dataclass(frozen=True)
class Embedding(Kernel):
    """``tokens [T] -> [T, k]`` from a table ``[n, k]``."""

    stem: ClassVar[str] = "embedding"
    n: int
    k: int
    weight: TiledLayout
    scale: float

    @property
    def params(self) -> dict[str, int | float | str | bool]:
        return super().params | {"format": self.weight.format.name}

    def cost(self) -> Cost:
        return Cost(0, self.k * self.weight.format.bits // 8 + 4 * self.k, self.k)

    def why(self) -> str:
        return f"rows of {self.weight.format.name} are decoded from the tiles, so that a tied LM head needs no second copy"

    def context(self) -> dict[str, object]:
        return {"scale_text": "" if self.scale == 1.0 else f" * {c_float(self.scale)}f"}

    @staticmethod
    def reference(tokens: NDArray[np.int32], table: F32, scale: float) -> F32:
        return table[tokens] * np.float32(scale)

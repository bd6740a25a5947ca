"""LayerNorm over rows, stored in the activation format of the product that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ferrum.codegen.formats import ActFormat
from ferrum.codegen.kernels.base import F32, Cost, Kernel, c_float


@dataclass(frozen=True)
class LayerNorm(Kernel):
    """``x [rows, k] -> act [rows, k]``; weight ``[k]`` and, with ``bias``, a bias ``[k]``, float32."""

    stem: ClassVar[str] = "layer_norm"
    row_wise: ClassVar[bool] = True
    k: int
    eps: float
    bias: bool
    act: ActFormat

    def cost(self) -> Cost:
        return Cost(4 * self.k * (1 + self.bias), 4 * self.k + self.act.row_bytes(self.k), 7 * self.k)

    def why(self) -> str:
        stored = f"stored as {self.act.name} for the product that reads it" if self.act.kind != "f32" else "kept in float32"
        return f"norm of {self.k} channels, {stored}; few rows are normalised by every thread, which saves a barrier"

    def context(self) -> dict[str, object]:
        return {"eps": c_float(self.eps)}

    @staticmethod
    def reference(x: F32, w: F32, bias: F32 | None, eps: float) -> F32:
        centered = x - x.astype(np.float64).mean(-1, keepdims=True)
        y = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + eps) * w
        return (y if bias is None else y + bias).astype(np.float32)

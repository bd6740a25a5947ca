"""Activation rows from float32 to the format of the product that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ferrum.codegen.formats import ActFormat
from ferrum.codegen.kernels.base import F32, Cost, Kernel
from ferrum.codegen.layouts import to_bf16, to_f32


@dataclass(frozen=True)
class Quantize(Kernel):
    """``x [rows, k] -> act [rows, k]``."""

    stem: ClassVar[str] = "quantize"
    row_wise: ClassVar[bool] = True
    k: int
    act: ActFormat

    def cost(self) -> Cost:
        return Cost(0, 4 * self.k + self.act.row_bytes(self.k), 3 * self.k)

    def why(self) -> str:
        return f"{self.k} channels to {self.act.name}, once for all rows of the weight; few rows are converted by every thread"

    @staticmethod
    def reference(x: F32, act: ActFormat) -> F32:
        """The float32 values that the stored row means."""
        if act.kind == "f32":
            return x
        if act.kind == "bf16":
            return to_f32(to_bf16(x))
        padded = np.pad(x, ((0, 0), (0, act.padded_k(x.shape[1]) - x.shape[1])))
        groups = padded.reshape(len(x), -1, act.group)
        scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
        q = np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0))
        return (q * scale).reshape(padded.shape)[:, : x.shape[1]].astype(np.float32)

"""Matrix product with a stored weight, with bias, gate and residual: the op, and one file for each kernel of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ferrum.codegen.kernels.base import F32, Kernel
from ferrum.codegen.layouts import RowLayout, TiledLayout
from ferrum.graphs.numpy_ops import gated


@dataclass(frozen=True)
class Linear(Kernel):
    """``x [rows, k] -> [rows, n]``, or ``[rows, n/2]`` = act(gate) * up; then ``+ bias`` before and ``+ residual`` after it."""

    n: int
    k: int
    weight: TiledLayout | RowLayout
    bias: bool
    residual: bool
    activation: str

    @property
    def args(self) -> tuple[str, ...]:
        bias = ("weight:1",) if self.bias else ()
        residual = ("value:1",) if self.residual else ()
        return ("count", "weight:0", "value:0", *bias, *residual, "result")

    @property
    def in_place(self) -> str:
        return "value:1" if self.residual else ""

    @property
    def n_out(self) -> int:
        return self.n // 2 if self.activation else self.n

    @staticmethod
    def reference(x: F32, w: F32, bias: F32 | None, residual: F32 | None, activation: str) -> F32:
        y = x.astype(np.float64) @ w.astype(np.float64).T
        if bias is not None:
            y = y + bias
        if activation:
            y = gated(activation, *np.split(y, 2, axis=-1))
        return (y if residual is None else y + residual).astype(np.float32)

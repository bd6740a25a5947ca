"""Matrix product with a stored weight: GEMV, small batches and prefill from one physical layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ferrum.codegen.formats import ActFormat
from ferrum.codegen.kernels.base import F32, Cost, Kernel
from ferrum.codegen.layouts import TiledLayout


@dataclass(frozen=True)
class Linear(Kernel):
    """``x [rows, k] -> [rows, n]``, or ``[rows, n/2]`` = silu(gate) * up.

    ``mr`` rows of x and ``nr`` weight tiles are held in registers at once.
    """

    stem: ClassVar[str] = "linear"
    n: int
    k: int
    weight: TiledLayout
    act: ActFormat
    bias: bool
    residual: bool
    activation: str
    mr: int
    nr: int

    @property
    def params(self) -> dict[str, int | float | str | bool]:
        return super().params | {"format": self.weight.format.name}

    @property
    def n_out(self) -> int:
        return self.n // 2 if self.activation == "silu_mul" else self.n

    @property
    def panel_bytes(self) -> int:
        """Scratch for one unit of nibbles unpacked to bytes (4-bit formats, many rows)."""
        return self.nr * self.weight.lanes * self.weight.padded_k if self.weight.format.bits == 4 else 0

    def cost(self) -> Cost:
        reads = self.act.row_bytes(self.k) + (4 * self.n_out if self.residual else 0)
        return Cost(self.weight.nbytes, reads + 4 * self.n_out, 2 * self.n * self.k)

    def why(self) -> str:
        rows = f"{self.mr} rows x {self.nr * self.weight.lanes} outputs in registers"
        unpack = "; above that the nibbles of a unit are unpacked once" if self.weight.format.bits == 4 else ""
        return (
            f"{self.weight.format.name} weights with {self.act.name} activations: 1 row streams the weights, up to {rows}{unpack}"
        )

    @staticmethod
    def reference(x: F32, w: F32, bias: F32 | None, residual: F32 | None, activation: str) -> F32:
        y = x.astype(np.float64) @ w.astype(np.float64).T
        if bias is not None:
            y = y + bias
        if activation == "silu_mul":
            gate, up = np.split(y, 2, axis=-1)
            y = gate / (1 + np.exp(-gate)) * up
        return (y if residual is None else y + residual).astype(np.float32)

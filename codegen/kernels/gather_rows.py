"""The rows that are sampled, before the final norm: the LM head never sees the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, Kernel


@dataclass(frozen=True)
class GatherRows(Kernel):
    """``x [tokens, k], rows [samples] -> [samples, k]``."""

    stem: ClassVar[str] = "gather_rows"
    row_wise: ClassVar[bool] = True
    k: int

    def cost(self) -> Cost:
        return Cost(0, 8 * self.k, 0)

    def why(self) -> str:
        return "only rows whose logits are wanted reach the final norm and the LM head"

    @staticmethod
    def reference(x: F32, rows: NDArray[np.int32]) -> F32:
        return x[rows]

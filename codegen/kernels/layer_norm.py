"""LayerNorm over rows, stored in the activation format of the product that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels import run_norm
from ferrum.codegen.kernels.base import F32, Cost, c_float
from ferrum.codegen.kernels.cases import Case, normal, rows_case
from ferrum.codegen.kernels.rows import ActRows, narrower
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.views import row_dims
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class LayerNorm(ActRows):
    """``x [rows, k] float32 -> act [rows, k]``; weight ``[k]`` and, with ``bias``, a bias ``[k]``, float32."""

    stem: ClassVar[str] = "layer_norm"
    k: int
    eps: float
    bias: bool
    act: ActFormat

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "weight:0", *(("weight:1",) if self.bias else ()), "result")

    def cost(self) -> Cost:
        return self.row_cost(1 + self.bias, 7)

    def why(self) -> str:
        return f"norm of {self.k} channels, mean first, {self.stored}"

    def context(self) -> dict[str, object]:
        return super().context() | {"eps": c_float(self.eps)}

    @staticmethod
    def reference(x: F32, w: F32, bias: F32 | None, eps: float) -> F32:
        centered = x - x.astype(np.float64).mean(-1, keepdims=True)
        y = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + eps) * w
        return (y if bias is None else y + bias).astype(np.float32)

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        """Rows far from zero: a variance from sums of squares would show here."""
        x = (random.normal(size=(rows, self.k)) + 10.0 ** random.integers(-3, 3, (rows, 1))).astype(np.float32)
        w, b = normal(random, self.k), normal(random, self.k)
        expected = self.reference(x, w, b if self.bias else None, self.eps)
        return rows_case({"value:0": x, "weight:0": w, "weight:1": b}, expected, self.act.kind)

    reduced = narrower


def choose(walk: Walk, node: Node) -> None:
    if math.prod(row_dims(node.output.shape)[:-1]) > 1:
        run_norm.choose(walk, node)
        return
    k, (act, output) = walk.width(node.output.name), walk.stored(node)
    kernel = LayerNorm(k, float(number(node, "eps")), bool(node.attrs["has_bias"]), act)
    walk.add(node, kernel, node.inputs[:1], node.inputs[1:], walk.row_bytes(act, k), output)

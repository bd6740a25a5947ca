"""RMSNorm over rows, stored in the activation format of the product that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels import run_norm
from ferrum.codegen.kernels.base import F32, Cost, c_float
from ferrum.codegen.kernels.cases import Case, far_apart, normal, rows_case
from ferrum.codegen.kernels.rows import ActRows, narrower
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.views import row_dims
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class RmsNorm(ActRows):
    """``x [rows, k] float32 -> act [rows, k]``; weight ``[k]`` float32."""

    stem: ClassVar[str] = "rms_norm"
    k: int
    eps: float
    act: ActFormat

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "weight:0", "result")

    def cost(self) -> Cost:
        return self.row_cost(1, 4)

    def why(self) -> str:
        return f"norm of {self.k} channels, read once, {self.stored}"

    def context(self) -> dict[str, object]:
        return super().context() | {"eps": c_float(self.eps)}

    @staticmethod
    def reference(x: F32, w: F32, eps: float) -> F32:
        return (x / np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True) + eps) * w).astype(np.float32)

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        x, w = far_apart(random, rows, self.k), normal(random, self.k)
        return rows_case({"value:0": x, "weight:0": w}, self.reference(x, w, self.eps), self.act.kind)

    reduced = narrower


def choose(walk: Walk, node: Node) -> None:
    if math.prod(row_dims(node.output.shape)[:-1]) > 1:
        run_norm.choose(walk, node)
        return
    k, (act, output) = walk.width(node.output.name), walk.stored(node)
    kernel = RmsNorm(k, float(number(node, "eps")), act)
    walk.add(node, kernel, node.inputs[:1], node.inputs[1:2], walk.row_bytes(act, k), output)

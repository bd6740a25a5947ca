"""Norms of several runs in a row: of each head of queries and keys that no attention kernel takes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import c_float
from ferrum.codegen.kernels.rowwise import RunKernel, runs
from ferrum.codegen.moves import value_view
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import normalize


@dataclass(frozen=True)
class RunNorm(RunKernel):
    """Weight ``[length]``, and bias where there is one; ``centered``: less their mean first (LayerNorm), else RMSNorm."""

    stem: ClassVar[str] = "run_norm"
    eps: float
    centered: bool
    bias: bool

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "weight:0", *(("weight:1",) if self.bias else ()), "result")

    def reference(self, runs: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        if self.centered:
            runs = runs - runs.mean(-1, keepdims=True)
        scaled = normalize(runs, arrays["weight:0"], self.eps)
        return np.asarray(scaled + arrays["weight:1"]) if self.bias else scaled

    def why(self) -> str:
        return f"generic: norms of {self.x.count} runs of {self.x.length} elements in each row"

    def context(self) -> dict[str, object]:
        return super().context() | {"eps": c_float(self.eps)}


def choose(walk: Walk, node: Node) -> None:
    view = value_view(walk, node.inputs[0], node.origin)
    bias = bool(node.attrs.get("has_bias"))
    kernel = RunNorm(runs(view, len(view.dims) - 1), float(number(node, "eps")), node.op == "layer_norm", bias)
    walk.add(node, kernel, (view.base,), node.inputs[1:], 4 * kernel.width)

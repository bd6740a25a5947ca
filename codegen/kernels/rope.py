"""Rotation of rows by the positions of their tokens (Su et al., RoFormer, 2021), where no attention kernel takes it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.rope_table import RopeTable
from ferrum.codegen.kernels.rowwise import RunKernel, runs
from ferrum.codegen.moves import value_view
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.ir import Node


@dataclass(frozen=True)
class Rope(RunKernel):
    """Pairs (i, i + rope_dim / 2) of the first ``rope_dim`` elements of each run; ``value:1`` is a ``RopeTable``'s."""

    stem: ClassVar[str] = "rope"
    rope_dim: int

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "value:1", "result")

    def more(self, random: np.random.Generator, rows: int) -> dict[str, NDArray[Any]]:
        return {"value:1": random.uniform(-1, 1, (rows, self.rope_dim)).astype(np.float32)}

    def reference(self, runs: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        half = self.rope_dim // 2
        table = arrays["value:1"].reshape(len(runs), *(1 for _ in runs.shape[2:]), self.rope_dim)
        cosine, sine, a, b = table[..., :half], table[..., half:], runs[..., :half], runs[..., half : self.rope_dim]
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, runs[..., self.rope_dim :]], -1)

    def why(self) -> str:
        return f"generic: rotation of {self.rope_dim} of {self.x.length} elements, {self.x.count} times a row"


def table(walk: Walk, node: Node, frequency: str) -> str:
    """The sines and cosines that ``frequency`` gives, shared by all layers that have the same."""
    scale = float(number(node, "rope_scale", 1.0))
    half = walk.width(frequency)
    kernel = RopeTable(half, scale)
    return walk.once((frequency, scale), node, kernel, (frequency,), 8 * half, f"{frequency}.{kernel.symbol}")


def choose(walk: Walk, node: Node) -> None:
    if walk.view(node.inputs[1]).base != "positions" or node.attrs["rows"] or node.inputs[2] not in walk.params:
        module, _, source = node.origin.rpartition(" ")
        what = "a rope by positions or frequencies that are computed, or by several rows of positions"
        raise UnsupportedOps([Finding(what, module, source, "one position for each token")], f"graph {walk.graph.name}")
    view = value_view(walk, node.inputs[0], node.origin)
    kernel = Rope(runs(view, len(view.dims) - 1), int(number(node, "rope_dim")))
    walk.add(node, kernel, (view.base, table(walk, node, node.inputs[2])), (), 4 * kernel.width)

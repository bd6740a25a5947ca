"""Sums, means and extremes along an axis of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.rowwise import RunKernel, Runs, runs
from ferrum.codegen.moves import value_view
from ferrum.codegen.views import contiguous, row_axes
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node

REDUCTIONS = ("sum", "mean", "max", "min")


@dataclass(frozen=True)
class Reduce(RunKernel):
    """Each run becomes one element by ``kind``, one of ``REDUCTIONS``."""

    stem: ClassVar[str] = "reduce"
    elements: ClassVar[bool] = True
    x: Runs
    kind: str

    @property
    def width(self) -> int:
        return self.x.count

    @property
    def out_strides(self) -> tuple[int, ...]:
        return contiguous((*self.x.outer, *self.x.inner))

    def reference(self, runs: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(getattr(np, self.kind)(runs, axis=-1))

    def why(self) -> str:
        return f"generic: {self.kind} of {self.x.length} elements, {self.x.count} times a row"


def choose(walk: Walk, node: Node) -> None:
    axis = row_axes(walk.shapes[node.inputs[0]])[int(number(node, "axis"))]
    assert axis is not None, node
    view = value_view(walk, node.inputs[0], node.origin)
    kernel = Reduce(runs(view, axis), node.op)
    walk.add(node, kernel, (view.base,), (), 4 * kernel.width)

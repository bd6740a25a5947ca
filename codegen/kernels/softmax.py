"""Softmax along an axis of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ferrum.codegen.kernels.rowwise import RunKernel, runs
from ferrum.codegen.moves import value_view
from ferrum.codegen.views import row_axes
from ferrum.codegen.walk import Walk, number
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import softmax


@dataclass(frozen=True)
class Softmax(RunKernel):
    """e^(x - max) of each run by its sum."""

    stem: ClassVar[str] = "softmax"
    elements: ClassVar[bool] = True

    def reference(self, runs: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return softmax(runs)

    def why(self) -> str:
        return f"generic: runs of {self.x.length} elements, {self.x.count} times a row"


def choose(walk: Walk, node: Node) -> None:
    axis = row_axes(walk.shapes[node.inputs[0]])[int(number(node, "axis"))]
    assert axis is not None, node
    view = value_view(walk, node.inputs[0], node.origin)
    kernel = Softmax(runs(view, axis))
    walk.add(node, kernel, (view.base,), (), 4 * kernel.width)

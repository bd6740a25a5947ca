"""Convolution over the axes behind [batch, channels], in groups, with stride, padding and dilation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ferrum.codegen.kernels.arrays import ItemKernel, Operand, Operands
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_index import convolved
from ferrum.graphs.op_spec import axes, integer


@dataclass(frozen=True)
class Ints:
    """A few numbers as a parameter of a kernel."""

    values: tuple[int, ...]

    @property
    def name(self) -> str:
        return "x".join(map(str, self.values))


@dataclass(frozen=True)
class Conv(ItemKernel):
    """Of each row ``x [channels, places ..], weight [outputs, channels / groups, width ..] -> [outputs, places ..]``, float32.

    Each sum is made channel by channel, place by place of the window, whatever else is computed.
    """

    stem: ClassVar[str] = "conv"
    x: Operand
    weight: Operand
    out: Operand
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int

    @property
    def flops(self) -> int:
        return 2 * self.out.size * math.prod(self.weight.dims[1:])

    def context(self) -> dict[str, object]:
        rank = len(self.stride.values)
        return super().context() | {
            "channels": self.weight.dims[1],
            "width": self.weight.dims[2:],
            "sizes": self.x.dims[-rank:],
            "places": self.out.dims[-rank:],
            "outputs": self.weight.dims[0],
            "batch": math.prod(self.x.dims[: -rank - 1]),
            "behind": [math.prod(self.x.dims[len(self.x.dims) - rank + axis + 1 :]) for axis in range(rank)],
            "inside": [math.prod(self.weight.dims[axis + 3 :]) for axis in range(rank)],
        }

    def reference(self, *read: NDArray[Any]) -> NDArray[Any]:
        rank = len(self.stride.values)
        x = read[0].reshape(-1, *self.x.dims[-rank - 1 :])  # rows, and what of a row comes before the channels, side by side
        return convolved(x, read[1][0], self.stride.values, self.padding.values, self.dilation.values, self.groups)

    def why(self) -> str:
        return "generic: a row of places at a time"


def choose(walk: Walk, node: Node) -> None:
    found = Operands(walk, node)
    x, weight = found.read
    stride, padding, dilation = (Ints(axes(node.attrs, name)) for name in ("stride", "padding", "dilation"))
    found.add(Conv(x, weight, found.result(), stride, padding, dilation, integer(node.attrs, "groups")))

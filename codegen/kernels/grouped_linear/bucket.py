"""The order of rows by their matrix, and the rows in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.arrays import ELEMENT, ArrayKernel, Operand
from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.layouts.activations import ActFormat

# Of a list of r rows: how many runs there are, where each begins and the last ends, the matrix of each, then the rows in order.
_WORDS_A_ROW = 5


def list_bytes(times: int) -> int:
    """Bytes of a list for each row of a step, of which there are ``times`` rows to be multiplied."""
    return ELEMENT * _WORDS_A_ROW * times


@dataclass(frozen=True)
class Bucket(ArrayKernel):
    """``group``, numbers below ``count`` -> a list: runs of rows of one matrix, the rows of a run in their own order."""

    stem: ClassVar[str] = "grouped_linear_bucket"
    group: Operand
    count: int

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, "result")

    def cost(self) -> Cost:
        return Cost(0, ELEMENT * self.group.size + list_bytes(self.group.size), 4 * self.group.size)

    def why(self) -> str:
        return f"rows in the order of {self.count} matrices, once for all products of them"


@dataclass(frozen=True)
class BucketRows(ArrayKernel):
    """``x``, rows of k values, and their list -> the rows in its order, in the format that the product reads.

    The axes before the last one are rows; where one has a stride of 0, several rows are the same one.
    """

    stem: ClassVar[str] = "grouped_linear_rows"
    x: Operand
    listed: Operand
    act: ActFormat

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, "result")

    @property
    def k(self) -> int:
        return self.x.dims[-1]

    @property
    def times(self) -> int:
        return self.x.size // self.k

    @property
    def row_bytes(self) -> int:
        """Bytes of the result for each row of a step."""
        return self.times * self.act.row_bytes(self.k)

    def cost(self) -> Cost:
        return Cost(0, ELEMENT * self.x.size + self.row_bytes, 3 * self.x.size)

    def context(self) -> dict[str, object]:
        axes = zip(self.x.dims[:-1], self.x.strides[:-1], strict=True)
        return {"k": self.k, "times": self.times, "axes": [axis for axis in axes if axis[0] != 1]}

    def why(self) -> str:
        return f"rows of one matrix side by side, as {self.act.name}"

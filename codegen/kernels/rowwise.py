"""Generic kernels that take runs of elements of each row: sums, softmax and norms along an axis, rotations."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cases import Case, normal
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import WARP, Geometry, GpuKernel, blocks_of, parameters, per_item
from ferrum.codegen.kernels.trials import Lies, draw, rows_of
from ferrum.codegen.views import View, contiguous
from ferrum.pack.launches import Rows

_ALONE = 4096  # elements of a row up to which every thread computes few rows for itself
_WARPS = 4  # of a block, at most


@dataclass(frozen=True)
class Runs:
    """Where the elements of a row's runs lie in a value: axes before the run's, the run, axes behind it, counted in elements.

    ``row``: from one row to the next.
    """

    row: int
    offset: int
    outer: tuple[int, ...]
    outer_strides: tuple[int, ...]
    length: int
    stride: int
    inner: tuple[int, ...]
    inner_strides: tuple[int, ...]

    @property
    def name(self) -> str:
        axes = [f"{n}*{s}" for n, s in zip((*self.outer, self.length, *self.inner), self.all_strides, strict=True)]
        return f"{self.row}+{self.offset} {' '.join(axes)} at {len(self.outer)}"

    @property
    def all_strides(self) -> tuple[int, ...]:
        return (*self.outer_strides, self.stride, *self.inner_strides)

    @property
    def dims(self) -> tuple[int, ...]:
        return (*self.outer, self.length, *self.inner)

    @property
    def loops(self) -> list[tuple[int, int]]:
        """(size, stride) of the axes around the run."""
        return [*zip(self.outer, self.outer_strides, strict=True), *zip(self.inner, self.inner_strides, strict=True)]

    def around(self, array: NDArray[Any], rows: int) -> NDArray[Any]:
        """The runs that lie in an array, the axis of a run last: ``[rows, *outer, *inner, length]``."""
        seen = Lies("", "f32", self.row, self.offset, self.dims, self.all_strides).seen(array, rows)
        return np.moveaxis(seen, 1 + len(self.outer), -1)

    @property
    def count(self) -> int:
        """Runs in a row."""
        total = 1
        for size, _ in self.loops:
            total *= size
        return total


def runs(view: View, axis: int) -> Runs:
    """The runs of ``view`` along an axis of its row."""
    row = view.width if view.rows else 0
    dims, strides = view.dims, view.strides
    around = dims[:axis], strides[:axis], dims[axis], strides[axis], dims[axis + 1 :], strides[axis + 1 :]
    return Runs(row, view.offset, *around)


@dataclass(frozen=True)
class RunKernel(CpuKernel, GpuKernel):
    """``value:0`` in runs, each thread some rows at a time, into rows of ``width`` elements that lie in order.

    On GPUs a warp has a run.
    """

    x: Runs

    @property
    def row_wise(self) -> bool:  # type: ignore[override]
        return self.x.count * self.x.length <= _ALONE

    @property
    def reads_private(self) -> bool:  # type: ignore[override]
        return self.row_wise

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "result")

    @property
    def width(self) -> int:
        return self.x.count * self.x.length

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Of the axes around a run in the result; without the run's where a run becomes one element."""
        whole = contiguous(self.x.dims)
        at = len(self.x.outer)
        return (*whole[:at], *whole[at + 1 :])

    def cost(self) -> Cost:
        size = self.x.count * self.x.length
        return Cost(0, 4 * (size + self.width), 4 * size)

    def context(self) -> dict[str, object]:
        loops = [(*loop, out) for loop, out in zip(self.x.loops, self.out_strides, strict=True)]
        step = contiguous(self.x.dims)[len(self.x.outer)]
        run = {"width": self.width, "loops": loops, "own_rows": self.row_wise, "out_stride": step}
        typed = dict.fromkeys(self.args[1:], "float")
        return run | {"params": parameters(typed), "warps": self.warps, "blocks": blocks_of(self.x.count, self.warps)}

    @property
    def warps(self) -> int:
        return min(_WARPS, self.x.count)

    def geometry(self, rows: Rows) -> Geometry:
        return per_item(rows, self.x.count * WARP, self.warps * WARP)

    @abstractmethod
    def reference(self, runs: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """What becomes of ``runs [rows, .., length]``: as many axes, or one less where a run becomes one element."""

    def more(self, random: np.random.Generator, rows: int) -> dict[str, NDArray[Any]]:
        """The arrays of a trial beside the runs."""
        return {arg: normal(random, self.x.length) for arg in self.args if arg.startswith("weight:")}

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        x = self.x
        arrays = draw(random, [Lies("value:0", "f32", x.row, x.offset, x.dims, x.all_strides)], rows) | self.more(random, rows)
        found = self.reference(x.around(arrays["value:0"], rows).astype(np.float64), arrays)
        if found.ndim == 2 + len(x.outer) + len(x.inner):
            found = np.moveaxis(found, -1, 1 + len(x.outer))
        return rows_of(arrays, found)

"""Trials of kernels whose operands are views: arrays behind them, their elements as numpy sees them, what a result may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ferrum.codegen.kernels.cases import Arrays, Case, Random, counts, error, exact, poison, values_of
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import RowCounts, Rows

_EDGE = 1e-4  # where float32 and float64 differ by more, rounding decides


@dataclass(frozen=True)
class Lies:
    """Where the elements of a row lie in an argument's array, counted in elements; ``row`` 0: all rows are one.

    ``kind``: of the numbers in memory, f32 or i32. Drawn integers are from ``low`` to before ``high``.
    """

    arg: str
    kind: str
    row: int
    offset: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    low: int = 0
    high: int = 2

    @property
    def extent(self) -> int:
        """Elements from the array's start to the last one that is read in the first row."""
        return self.offset + sum((dim - 1) * stride for dim, stride in zip(self.dims, self.strides, strict=True)) + 1

    def seen(self, array: NDArray[Any], rows: int) -> NDArray[Any]:
        """The elements ``[rows, *dims]`` of the argument's array."""
        flat = array.reshape(-1)[self.offset :]
        steps = (self.row, *self.strides)
        return as_strided(flat, (rows, *self.dims), tuple(step * flat.itemsize for step in steps), writeable=False)


def draw(random: Random, lying: Sequence[Lies], rows: int) -> dict[str, NDArray[Any]]:
    """An array for each argument that is named, large enough for all that is read of it."""
    arrays: dict[str, NDArray[Any]] = {}
    for arg in dict.fromkeys(lies.arg for lies in lying):
        same = [lies for lies in lying if lies.arg == arg]
        size = max((rows - 1) * lies.row + lies.extent for lies in same)
        size = max(size, *(rows * lies.row for lies in same))
        if same[0].kind == "f32":
            arrays[arg] = random.normal(size=size).astype(np.float32)
        else:
            arrays[arg] = random.integers(same[0].low, same[0].high, size).astype(np.int32)
    return arrays


def floats_case(arrays: Arrays, wanted: NDArray[Any], rough: NDArray[Any], act: ActFormat, rows: int) -> Case:
    """A result of float32 in rows, given what it is in float64 and in numpy's float32: where these differ, nothing is asked."""
    wanted, rough = wanted.reshape(rows, -1), rough.reshape(rows, -1)
    width = wanted.shape[1]
    result = poison((rows, act.row_stride(width)), act.kind)

    def judge(scratch: Mapping[str, Any]) -> float:
        got = values_of(result, width).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.maximum(np.abs(wanted), 1.0)
            steady = np.isfinite(wanted) & (np.abs(rough - wanted) <= _EDGE * size)
            off = np.where(steady, np.abs(got - wanted) / size, 0.0)
        return float("inf") if np.isnan(off).any() else float(off.max(initial=0.0))

    return Case({**arrays, "result": result}, counts(rows), judge)


def rows_of(arrays: Arrays, expected: NDArray[Any], rows: RowCounts | None = None, of: Rows = "tokens") -> Case:
    """A result ``[rows, ..]`` of float32, or of integers, which must be exact."""
    expected = expected.reshape(len(expected), -1)
    result = poison(expected.shape, "f32")
    if expected.dtype.kind != "f":
        result = np.ascontiguousarray(result).view(np.int32)

    def judge(scratch: Mapping[str, Any]) -> float:
        if expected.dtype.kind != "f":
            return exact(bool((result == expected).all()))
        return error(values_of(result, expected.shape[1]), expected.astype(np.float32))

    return Case({**arrays, "result": result}, rows or counts(len(expected)), judge, of)


def put(rows: int, width: int, dims: Sequence[int], strides: Sequence[int], offset: int, out: NDArray[Any], data: Any) -> None:
    """Write ``data [rows, *dims]`` into the rows ``[rows, width]`` of ``out``, where strides and offset say."""
    flat = out.reshape(-1)[offset:]
    as_strided(flat, (rows, *dims), tuple(step * out.itemsize for step in (width, *strides)))[...] = data

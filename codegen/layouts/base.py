"""What a layout is, and what layouts of matrices share: rows in the order in which they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.formats import F32, Array, Format, to_f32
from ferrum.codegen.layouts.quantize import Quantized, codes_of, quantize_groups
from ferrum.graphs.expressions.evaluate import Blocks
from ferrum.graphs.expressions.expression import Blocked

# Values that are encoded at a time: few enough to stay in a core's cache while a dozen passes go over them.
CHUNK_VALUES = 1 << 18

Ids = NDArray[np.integer[Any]]
T = TypeVar("T")


class Source(Protocol):
    """A parameter's rows, read piece by piece: as floats, or as codes with their scales where it is ``blocked``."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def blocked(self) -> Blocked | None: ...
    def values(self, rows: slice) -> Array: ...
    def blocks(self, rows: slice) -> Blocks: ...


class Parallel(Protocol):
    """``map``, or something that runs as many of its calls at once as there are cores; results come in order."""

    def __call__(self, function: Callable[[int], T], items: Iterable[int], /) -> Iterator[T]: ...


class Layout(Protocol):
    """How a parameter lies in the member ``weights``."""

    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def encode(self, source: Source, parallel: Parallel) -> Iterator[Array]:
        """The stored bytes, ``nbytes`` in all, piece by piece."""

    def decode(self, data: memoryview | bytes, ids: Ids | None = None) -> F32:
        """Rows ``ids`` (None: all) of the stored parameter as float32; only what holds them is read."""


class InMemory:
    """Floats in memory (bfloat16 as uint16 bits) as a source."""

    blocked: Blocked | None = None

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def values(self, rows: slice) -> Array:
        return to_f32(self.array[rows])

    def blocks(self, rows: slice) -> Blocks:
        raise AssertionError("floats have no blocks")


class MatrixLayout:
    """``[n, k]`` in units of ``unit_rows`` rows; ``halves`` 2 alternates tiles of ``tile_rows`` of the first and second half."""

    n: int
    k: int
    format: Format
    halves: int

    @property
    def unit_rows(self) -> int:
        """Rows that are encoded together."""
        raise NotImplementedError

    @property
    def tile_rows(self) -> int:
        raise NotImplementedError

    @property
    def padded_k(self) -> int:
        raise NotImplementedError

    @property
    def padded_n(self) -> int:
        per_half = self.unit_rows // self.halves
        return -(-(self.n // self.halves) // per_half) * per_half * self.halves

    @property
    def units(self) -> int:
        return self.padded_n // self.unit_rows

    def stored_row(self, ids: Ids) -> Ids:
        """Stored rows of the logical rows ``ids``."""
        half, row = np.divmod(np.asarray(ids, np.int64), self.n // self.halves)
        return (row // self.tile_rows * self.halves + half) * self.tile_rows + row % self.tile_rows

    def by_units(self, function: Callable[[int, int], T], parallel: Parallel) -> Iterator[T]:
        """``function(first unit, number of units)`` of runs of units that fit the cache, in order."""
        step = max(1, CHUNK_VALUES // (self.unit_rows * self.padded_k))
        return parallel(lambda first: function(first, min(step, self.units - first)), range(0, self.units, step))

    def floats(self, source: Source, first: int, count: int) -> F32:
        """Rows of units ``first … first + count`` in stored order as ``[rows, padded_k]``; padding is zero."""
        return self._stored(source.values, first, count, self.padded_k, 0, np.float32)

    def quantized(self, source: Source, first: int, count: int) -> Quantized:
        """The same in groups of the format: the codes of the source where they are of that kind, else the best ones."""
        if self.format.holds(source.blocked):
            read = cache(lambda low, high: codes_of(source.blocks(slice(low, high)), self.format))
            groups, zeros = self.padded_k // self.format.group, None
            scales = self._stored(lambda rows: read(rows.start, rows.stop)[1], first, count, groups, 0, np.float32)
            exact = scales.astype(np.float16)
            if np.array_equal(exact.astype(np.float32), scales):
                codes = self._stored(
                    lambda rows: read(rows.start, rows.stop)[0], first, count, self.padded_k, self.format.zero, np.uint8
                )
                if self.format.kind == "int4a":
                    zeros = self._stored(lambda rows: read(rows.start, rows.stop)[2], first, count, groups, 0, np.uint8)
                return codes, exact, zeros
        return quantize_groups(self.floats(source, first, count), self.format)

    def _stored(
        self, read: Callable[[slice], Any], first: int, count: int, width: int, fill: int, dtype: type[np.generic]
    ) -> NDArray[Any]:
        """``read`` gives source rows; they go where their units have them, ``fill`` everywhere else."""
        per_half, rows = self.n // self.halves, count * self.unit_rows // self.halves
        start = first * self.unit_rows // self.halves
        shape = (self.halves, rows, width)
        out: NDArray[Any] = np.full(shape, fill, dtype) if fill else np.zeros(shape, dtype)
        real = min(rows, per_half - start)
        for half in range(self.halves if real > 0 else 0):
            low = half * per_half + start
            values = read(slice(low, low + real))
            out[half, :real, : values.shape[1]] = values
        if self.halves == 1:
            return out[0]
        tiles = out.reshape(self.halves, -1, self.tile_rows, width)
        return tiles.transpose(1, 0, 2, 3).reshape(-1, width)

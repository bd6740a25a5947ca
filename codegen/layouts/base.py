"""What a layout is, and what layouts of matrices share: rows in the order in which they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.formats import F32, Array, Format
from ferrum.codegen.layouts.quantize import Quantized, Stepped, in_numbers, quantize_groups, quantize_steps
from ferrum.graphs.expressions.evaluate import Pieces

# Values that are encoded at a time: few enough to stay in a core's cache while a dozen passes go over them.
CHUNK_VALUES = 1 << 18

Ids = NDArray[np.integer[Any]]
T = TypeVar("T")


class Parallel(Protocol):
    """``map``, or something that runs as many of its calls at once as there are cores; results come in order."""

    def __call__(self, function: Callable[[int], T], items: Iterable[int], /) -> Iterator[T]: ...


class Layout(Protocol):
    """How a parameter lies in the member ``weights``."""

    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def encode(self, source: Pieces, parallel: Parallel) -> Iterator[Array]:
        """The stored bytes, ``nbytes`` in all, piece by piece."""

    def decode(self, data: memoryview | bytes, ids: Ids | None = None) -> F32:
        """Rows ``ids`` (None: all) of the stored parameter as float32; only what holds them is read."""


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

    def floats(self, source: Pieces, first: int, count: int) -> F32:
        """Rows of units ``first … first + count`` in stored order as ``[rows, padded_k]``; padding is zero."""
        return self._stored(source.values, first, count, self.padded_k, np.float32)

    def quantized(self, source: Pieces, first: int, count: int) -> Quantized:
        """The same in groups of the format: the source's own codes where the format holds them, else the best ones."""
        if not self.format.holds(source.blocked):
            return quantize_groups(self.floats(source, first, count), self.format)
        part, groups = self._parts(source, first, count), self.padded_k // self.format.group
        offsets: NDArray[Any] | None = None
        if self.format.zeros:
            offsets = part("zeros", groups, np.uint8)
        elif self.format.mins:
            offsets = part("mins", groups, np.float16)
        return self._codes(part), part("scales", groups, np.float16), offsets

    def stepped(self, source: Pieces, first: int, count: int) -> Stepped:
        """The same of a format whose scales are whole numbers of steps."""
        fmt, span = self.format, self.format.span(self.k)
        if not fmt.holds(source.blocked):
            return quantize_steps(self.floats(source, first, count), fmt, span)
        part, spans = self._parts(source, first, count), self.padded_k // span
        numbers = ("scales", "mins")[: 1 + fmt.mins]
        found = [part(name, self.padded_k // fmt.group, np.int8).reshape(-1, spans, span // fmt.group) for name in numbers]
        steps = [part(name, spans, np.float16) for name in ("steps", "min_steps")[: 1 + fmt.mins]]
        return self._codes(part), in_numbers(found), np.stack(steps, axis=-1)

    def _parts(self, source: Pieces, first: int, count: int) -> Callable[[str, int, type[np.generic]], NDArray[Any]]:
        """The source's own blocks: a part by its name, how many of it a row has and its dtype."""
        read = cache(lambda low, high: source.blocks(slice(low, high)))

        def part(name: str, width: int, dtype: type[np.generic]) -> NDArray[Any]:
            return self._stored(lambda rows: getattr(read(rows.start, rows.stop), name), first, count, width, dtype)

        return part

    def _codes(self, part: Callable[[str, int, type[np.generic]], NDArray[Any]]) -> NDArray[np.uint8]:
        return (part("codes", self.padded_k, np.int16) + np.int16(self.format.zero)).astype(np.uint8)

    def _stored(
        self, read: Callable[[slice], Any], first: int, count: int, width: int, dtype: type[np.generic]
    ) -> NDArray[Any]:
        """``read`` gives source rows; they go where their units have them, zeros everywhere else."""
        per_half, rows = self.n // self.halves, count * self.unit_rows // self.halves
        start = first * self.unit_rows // self.halves
        out: NDArray[Any] = np.zeros((self.halves, rows, width), dtype)
        real = min(rows, per_half - start)
        for half in range(self.halves if real > 0 else 0):
            low = half * per_half + start
            values = read(slice(low, low + real))
            out[half, :real, : values.shape[1]] = values
        if self.halves == 1:
            return out[0]
        tiles = out.reshape(self.halves, -1, self.tile_rows, width)
        return tiles.transpose(1, 0, 2, 3).reshape(-1, width)

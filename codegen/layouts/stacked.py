"""Matrices of one shape, each laid out as if it were alone: the weights of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ferrum.codegen.layouts.base import Ids, Parallel
from ferrum.codegen.layouts.formats import F32, Array
from ferrum.codegen.layouts.rows import RowLayout
from ferrum.codegen.layouts.tiled import TiledLayout
from ferrum.graphs.expressions.evaluate import Pieces


@dataclass(frozen=True)
class StackedLayout:
    """``[count, n, k]``; matrix ``i`` begins ``i * matrix.nbytes`` bytes behind the first."""

    count: int
    matrix: TiledLayout | RowLayout

    @property
    def name(self) -> str:
        return self.matrix.name

    @property
    def nbytes(self) -> int:
        return self.count * self.matrix.nbytes

    def encode(self, source: Pieces, parallel: Parallel) -> Iterator[Array]:
        def pieces(index: int) -> list[Array]:
            return list(self.matrix.encode(source.element(index), map))

        for found in parallel(pieces, range(self.count)):
            yield from found

    def decode(self, data: memoryview | bytes, ids: Ids | None = None) -> F32:
        """Matrices ``ids``, whole."""
        each, chosen = self.matrix.nbytes, range(self.count) if ids is None else np.asarray(ids).tolist()
        out = np.empty((len(chosen), self.matrix.n, self.matrix.k), np.float32)
        for at, index in enumerate(chosen):
            out[at] = self.matrix.decode(memoryview(data)[index * each : (index + 1) * each])
        return out

"""Parameters that are stored as they are: float32, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ferrum.codegen.layouts.base import CHUNK_VALUES, Ids, Parallel
from ferrum.codegen.layouts.formats import F32, Array
from ferrum.graphs.expressions.evaluate import Pieces


@dataclass(frozen=True)
class PlainLayout:
    """Any shape as contiguous float32: norms, biases, frequencies."""

    shape: tuple[int, ...]
    name: str = "rows"

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    def encode(self, source: Pieces, parallel: Parallel) -> Iterator[Array]:
        if not self.shape:
            yield np.ascontiguousarray(source.values(slice(0, 1)), np.float32)
            return
        step = max(1, CHUNK_VALUES // math.prod(self.shape[1:]))
        for first in range(0, self.shape[0], step):
            yield np.ascontiguousarray(source.values(slice(first, min(first + step, self.shape[0]))), np.float32)

    def decode(self, data: memoryview | bytes, ids: Ids | None = None) -> F32:
        values = np.frombuffer(data, np.float32)[: self.nbytes // 4].reshape(self.shape)
        return values if ids is None else values[ids]

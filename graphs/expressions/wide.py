"""Expressions that lie across their tensors (a transposed matrix), evaluated in wide runs: each tensor is read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from ferrum.graphs.expressions.evaluate import Array, ExprRows, Pieces, QuantBlocks, lies_across
from ferrum.graphs.expressions.expression import Blocked, Ints

RUN_VALUES = 1 << 24  # 64 MiB of floats
_KEPT = 3  # runs: those of both halves of a matrix, and one that ends while the next begins


class Wide:
    """A source whose rows are evaluated a run at a time; several threads may ask for parts of it."""

    def __init__(self, source: ExprRows, run_values: int = RUN_VALUES) -> None:
        self.source = source
        self.run = max(1, run_values // max(1, math.prod(source.shape[1:])))
        self._kept: dict[tuple[str, int], Any] = {}
        self._lock = Lock()

    @property
    def shape(self) -> Ints:
        return self.source.shape

    @property
    def blocked(self) -> Blocked | None:
        return self.source.blocked

    def values(self, rows: slice) -> Array:
        pieces = self._pieces("values", lambda run: np.ascontiguousarray(self.source.values(run)), rows)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def blocks(self, rows: slice) -> QuantBlocks:
        pieces = self._pieces("blocks", self.source.blocks, rows)
        return pieces[0] if len(pieces) == 1 else QuantBlocks.joined(pieces)

    def element(self, index: int) -> Pieces:
        found = self.source.element(index)
        return Wide(found) if lies_across(found.expr) else found

    def _pieces(self, kind: str, evaluate: Callable[[slice], Any], rows: slice) -> list[Any]:
        found = []
        for number in range(rows.start // self.run, (rows.stop - 1) // self.run + 1):
            first = number * self.run
            whole = self._whole(kind, evaluate, number)
            found.append(whole[max(rows.start - first, 0) : rows.stop - first])
        return found

    def _whole(self, kind: str, evaluate: Callable[[slice], Any], number: int) -> Any:
        with self._lock:
            if (kind, number) not in self._kept:
                first = number * self.run
                self._kept[kind, number] = evaluate(slice(first, min(first + self.run, self.shape[0])))
                while len(self._kept) > _KEPT:
                    del self._kept[next(iter(self._kept))]
            return self._kept[kind, number]

"""Weights are looked at as they are read: one that is no number makes every answer one that is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.evaluate import Array, Pieces, QuantBlocks, Reader, evaluate, whole
from ferrum.graphs.expressions.expression import Blocked, Expr, Ints, Tensor, tensors


@dataclass(frozen=True)
class Finite:
    """A source whose floats are checked. Infinities are numbers of what is stored as it is, but have no place in a matrix."""

    source: Pieces
    expr: Expr
    reader: Reader
    matrix: bool

    @property
    def shape(self) -> Ints:
        return self.source.shape

    @property
    def blocked(self) -> Blocked | None:
        return self.source.blocked

    def values(self, rows: slice) -> Array:
        return self._checked(self.source.values(rows))

    def blocks(self, rows: slice) -> QuantBlocks:
        found = self.source.blocks(rows)
        for part in found.parts().values():
            if part.dtype.kind == "f":
                self._checked(part)
        return found

    def element(self, index: int) -> Finite:
        return Finite(self.source.element(index), self.expr, self.reader, self.matrix)

    def _checked(self, array: NDArray[Any]) -> NDArray[Any]:
        """Raises FerrumError (checkpoint-corrupt) with the name of a tensor that holds something else."""
        if (np.isfinite(array) if self.matrix else ~np.isnan(array)).all():
            return array
        names = dict.fromkeys(tensor.name for tensor in tensors(self.expr))
        name = next((tensor.name for tensor in tensors(self.expr) if self._at_fault(tensor)), " and ".join(names))
        kind = "NaN" if np.isnan(array).any() else "an infinity"
        raise FerrumError("checkpoint-corrupt", f"{name} holds {kind}", "the weights", "use another checkpoint of this model")

    def _at_fault(self, tensor: Tensor) -> bool:
        """Only of tensors of floats can it be said: of others it takes the whole expression."""
        if tensor.dtype != "f32":
            return False
        values = evaluate(tensor, self.reader, whole(tensor.shape))
        return not (np.isfinite(values) if self.matrix else ~np.isnan(values)).all()

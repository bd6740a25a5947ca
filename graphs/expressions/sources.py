"""What else than a checkpoint's tensors a parameter can be: numbers that the model computes, and what is bound later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.expressions.expression import Expr

Floats: TypeAlias = NDArray[np.float64]
BINDINGS = ("load", "request")


class Constant:
    """Numbers that the compiler knows (rope's frequencies), flat, as float64. Two of the same bytes are equal."""

    def __init__(self, values: Iterable[float] | Floats) -> None:
        array = np.array(values if isinstance(values, np.ndarray) else list(values), np.float64).reshape(-1)
        array.flags.writeable = False
        self.values: Floats = array

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the numbers, little-endian."""
        return hashlib.sha256(self.values.astype("<f8").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Constant({self.values.tolist()})" if self.values.size <= 8 else f"Constant of {self.values.size}"


@dataclass(frozen=True, slots=True)
class External:
    """A parameter that no checkpoint holds: bound when a pack is loaded, or anew by each request (an adapter)."""

    bound: str


Source: TypeAlias = Expr | Constant | External

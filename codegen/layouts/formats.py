"""Number formats of weights: how many bits, which values share a scale; conversions between floats."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Blocked

Array = NDArray[np.generic]
F32 = NDArray[np.float32]
_FORMAT = re.compile(r"(f32|bf16|fp8|(?:int8|int6|int4[asm]?)-g([1-9]\d{0,5}))")
# K values of the groups that share a step, where the width allows it.
_SPAN = 128


@dataclass(frozen=True)
class Format:
    """A logical number format: ``kind`` is one of those below; ``group`` K values share a scale (0: none).

    fp8 is e4m3 with one float32 scale for a whole row. Of the integers, int4a has zero points, int4m least values and int4s
    nothing beside its float16 scales, which int4 has not on every target.
    """

    kind: str
    group: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-g{self.group}" if self.group else self.kind

    @property
    def bits(self) -> int:
        return {"f32": 32, "bf16": 16, "fp8": 8, "int8": 8, "int6": 6}.get(self.kind, 4)

    @property
    def per_row(self) -> bool:
        """One scale for a row, applied to its finished sum."""
        return self.kind == "fp8"

    @property
    def whole_scales(self) -> bool:
        """Scales are whole numbers, multiplied by the step of a span."""
        return self.kind == "int4"

    @property
    def zeros(self) -> bool:
        """Groups have a zero point: value = scale * (q - zero)."""
        return self.kind == "int4a"

    @property
    def mins(self) -> bool:
        """Groups have a least value: value = scale * q + min."""
        return self.kind == "int4m"

    @property
    def zero(self) -> int:
        """The stored value that means 0 (symmetric integer formats)."""
        return {"int8": 128, "int6": 32, "int4": 8, "int4s": 8}.get(self.kind, 0)

    @property
    def byte_zero(self) -> int:
        """The same of the bytes that are multiplied."""
        return 128 if self.whole_scales else self.zero

    def holds(self, blocked: Blocked | None) -> bool:
        """Whether codes of a checkpoint's blocks along rows are codes of this format, with the same scales."""
        if blocked is None or (blocked.axis, blocked.scales, blocked.size) != (1, "f16", self.group):
            return False
        exact = self.kind in ("int8", "int6", "int4s", "int4a", "int4m")
        return exact and blocked.bits <= self.bits and (blocked.zeros, blocked.mins) == (self.zeros, self.mins)

    def span(self, k: int) -> int:
        """K values of a row of ``k`` that share a float scale."""
        span, padded = self.group, -(-k // self.group) * self.group
        while self.whole_scales and span < _SPAN and padded % (2 * span) == 0:
            span *= 2
        return span


def unknown(kind: str, name: str) -> FerrumError:
    """The names are chosen by the compiler, but come back from dumps that a user may have edited."""
    return FerrumError("graph-text", f"no {kind} is called {name[:60]!r}", "stage layout", "start from layout, which chooses it")


def parse_format(name: str) -> Format:
    """Raises FerrumError for what is no format's name."""
    match = _FORMAT.fullmatch(name)
    if match is None:
        raise unknown("number format", name)
    return Format(name.split("-")[0], int(match.group(2) or 0))


def fit_group(group: int, k: int) -> int:
    """The largest of group, group/2 … 32 that divides ``k``; 32 when none does (K is then padded)."""
    while group > 32 and k % group:
        group //= 2
    return group


def to_f32(array: Array) -> F32:
    """float32 values of f32, f16, f64 arrays, or of bfloat16 bits held as uint16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


def to_bf16(array: F32) -> NDArray[np.uint16]:
    """bfloat16 bits, rounded to nearest even; a NaN is 0x7fff, as in every kernel."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(bits.view(np.float32))
    if nan.any():  # the carry of some would turn them into zeros
        rounded[nan] = 0x7FFF
    return rounded

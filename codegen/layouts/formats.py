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
# K values of the groups that share a step, where the width allows it.
_SPAN = 128
# Whole numbers that a span of a stepped format has room for: scales, then as many least values where it has them.
NUMBERS = 16


@dataclass(frozen=True)
class _Kind:
    """``zero``: the code that means 0. ``offsets``: what groups have beside a scale, ``zeros`` or ``mins``. ``scales``: f16, or
    whole numbers of so many bits that multiply a step: u4 the codes themselves, u6 and i8 (with a sign) sums of a group.
    ``codes``: whole numbers, or the floats that they are."""

    bits: int
    zero: int = 0
    offsets: str = ""
    scales: str = ""
    codes: str = "int"


_KINDS = {
    "f32": _Kind(32),
    "bf16": _Kind(16),
    "fp8": _Kind(8, scales="f32", codes="e4m3"),
    "int8": _Kind(8, 128, "", "f16"),
    "int6": _Kind(6, 32, "", "f16"),
    "int6k": _Kind(6, 32, "", "i8"),
    "int5": _Kind(5, 16, "", "f16"),
    "int5m": _Kind(5, 0, "mins", "f16"),
    "int5k": _Kind(5, 0, "mins", "u6"),
    "int4": _Kind(4, 8, "", "u4"),
    "int4a": _Kind(4, 0, "zeros", "f16"),
    "int4k": _Kind(4, 0, "mins", "u6"),
    "int4m": _Kind(4, 0, "mins", "f16"),
    "int4s": _Kind(4, 8, "", "f16"),
}
_FORMAT = re.compile(r"(f32|bf16|fp8)|(int[4568][a-z]?)-g([1-9]\d{0,5})")


@dataclass(frozen=True)
class Format:
    """A logical number format: ``kind`` is one of those above; ``group`` K values share a scale (0: none).

    fp8 is e4m3 with one float32 scale for a whole row. Of the integers, int4a has zero points, those with m least values, those
    with k whole scales (and least values, below six bits) with steps that a span shares, and int4s nothing beside its float16
    scales, which int4 has not on every target.
    """

    kind: str
    group: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-g{self.group}" if self.group else self.kind

    @property
    def bits(self) -> int:
        return _KINDS[self.kind].bits

    @property
    def per_row(self) -> bool:
        """One scale for a row, applied to its finished sum."""
        return self.kind == "fp8"

    @property
    def whole_scales(self) -> bool:
        """Scales are whole numbers that make bytes of codes; a span has a bfloat16 step."""
        return _KINDS[self.kind].scales == "u4"

    @property
    def stepped(self) -> bool:
        """Scales and least values of groups are whole numbers; a span has a float16 step for each of both."""
        return self.number_bits > 0

    @property
    def number_bits(self) -> int:
        """Bits of these whole numbers; those of eight have a sign."""
        return {"u6": 6, "i8": 8}.get(_KINDS[self.kind].scales, 0)

    @property
    def zeros(self) -> bool:
        """Groups have a zero point: value = scale * (q - zero)."""
        return _KINDS[self.kind].offsets == "zeros"

    @property
    def mins(self) -> bool:
        """Groups have a least value: value = scale * q + min."""
        return _KINDS[self.kind].offsets == "mins"

    @property
    def zero(self) -> int:
        """The stored value that means 0 (symmetric integer formats)."""
        return _KINDS[self.kind].zero

    @property
    def byte_zero(self) -> int:
        """The same of the bytes that are multiplied."""
        return 128 if self.whole_scales else self.zero

    def holds(self, blocked: Blocked | None) -> bool:
        """Whether codes of a checkpoint's blocks along rows are codes of this format, with the same scales."""
        if blocked is None or blocked.axis != 1 or blocked.bits > self.bits or blocked.codes != _KINDS[self.kind].codes:
            return False
        shared = self._widest if self.stepped else 0
        group = 0 if self.per_row else self.group
        wanted = (_KINDS[self.kind].scales, group, shared, self.zeros, self.mins)
        return (blocked.scales, blocked.size, blocked.span, blocked.zeros, blocked.mins) == wanted

    def span(self, k: int) -> int:
        """K values of a row of ``k`` that share a float scale, or the step of whole ones."""
        span, padded = self.group, -(-k // self.group) * self.group
        while span < self._widest and padded % (2 * span) == 0:
            span *= 2
        return span

    @property
    def _widest(self) -> int:
        if self.stepped:
            return self.group * NUMBERS // (2 if self.mins else 1)
        return _SPAN if self.whole_scales else self.group

    def rounded(self, k: int) -> int:
        """K values of a row of activations that are rounded together: what one integer sum is of."""
        return self.group if self.stepped else self.span(k)


def unknown(kind: str, name: str) -> FerrumError:
    """The names are chosen by the compiler, but come back from dumps that a user may have edited."""
    return FerrumError("graph-text", f"no {kind} is called {name[:60]!r}", "stage layout", "start from layout, which chooses it")


def parse_format(name: str) -> Format:
    """Raises FerrumError for what is no format's name."""
    match = _FORMAT.fullmatch(name)
    kind = match and (match[1] or match[2])
    if match is None or kind not in _KINDS:
        raise unknown("number format", name)
    return Format(kind, int(match[3] or 0))


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

"""What an expression is: its shape, its dtype and, where it is quantized, its blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

Ints: TypeAlias = tuple[int, ...]


class ExpressionFault(ValueError):
    """An expression without a type: one line that says which rule it breaks."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """How values are quantized: ``size`` neighbours along ``axis`` share a scale and, with ``zeros``, a zero point too, or with
    ``mins`` a least value. ``bits``: of a code; those with neither are signed.

    ``scales`` is their dtype, ``f32`` where the checkpoint may store any float. ``span``: that many neighbours share a step that
    their scales, and one that their least values, are multiples of; 0 where they are numbers by themselves. A ``size`` of 0 is
    the whole axis. ``codes``: whole numbers, e4m3 or other floats.
    """

    scheme: str
    size: int
    axis: int
    bits: int
    zeros: bool
    scales: str
    mins: bool = False
    span: int = 0
    codes: str = "int"


@dataclass(frozen=True, slots=True)
class Type:
    shape: Ints
    dtype: str = "f32"
    blocked: Blocked | None = None


def reshaped_blocks(inner: Type, shape: Ints) -> Blocked | None:
    """The blocks of ``inner`` in another shape: kept along a last axis that stays, and where axes of one place come and go."""
    blocked = inner.blocked
    if blocked is None or not shape:
        return None
    if blocked.axis == len(inner.shape) - 1 and shape[-1] == inner.shape[-1]:
        return replace(blocked, axis=len(shape) - 1)
    before, after = ([axis for axis, size in enumerate(sizes) if size > 1] for sizes in (inner.shape, shape))
    if blocked.axis not in before or [inner.shape[axis] for axis in before] != [shape[axis] for axis in after]:
        return None
    return replace(blocked, axis=after[before.index(blocked.axis)])


def check(condition: bool, what: str) -> None:
    if not condition:
        raise ExpressionFault(what)

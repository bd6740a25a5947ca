"""Numbers that are shared by more values than lie in one block along one axis."""

from __future__ import annotations

import math

from ferrum.graphs.expressions.expression import Expr, Repeat

WIDEST = 128  # of formats' groups


def block_of(size: int, length: int) -> int:
    """Neighbours that are a block where ``size`` share a scale: as many as a format may have in a group, and whole blocks in the
    axis and in what shares a scale."""
    return math.gcd(WIDEST, size, length)


def repeated(expr: Expr, axis: int, times: int, size: int) -> Expr:
    """Each element of an axis ``times`` times, ``size`` in all."""
    return expr if times == 1 and expr.type.shape[axis] == size else Repeat(expr, axis, times, size)

"""Where a quantized tensor becomes floats."""

from __future__ import annotations

from ferrum.graphs.expressions.expression import Dequant, Expr, Factors, inputs


def why_floats(expr: Expr) -> str:
    """Which step takes the blocks of a quantized tensor away; empty when they are kept or there are none."""
    if isinstance(expr, Factors):  # of our own quantization: they are of floats by then
        return why_floats(expr.source)
    if expr.type.blocked or not any(_holds_blocks(part) for part in inputs(expr)):
        return ""
    found = next((reason for part in inputs(expr) if (reason := why_floats(part))), "")
    return found or f"{type(expr).__name__.lower()} makes floats of blocks"


def _holds_blocks(expr: Expr) -> bool:
    return isinstance(expr, Dequant) or any(map(_holds_blocks, inputs(expr)))

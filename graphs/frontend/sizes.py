"""Sizes as torch writes them (sympy expressions of symbols) → sizes of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferrum.graphs.dims import Dim, DimFault, add, floor_divide, largest, multiply, smallest, subtract


class NoSize(ValueError):
    """A size that has no form in the graph."""


def size_of(expr: Any, symbols: Mapping[str, str]) -> Dim:
    """``expr`` with its symbols named by ``symbols``; batch times seq is tokens. Raises ``NoSize``."""
    try:
        return _size(expr, symbols)
    except DimFault as fault:
        raise NoSize(str(fault)) from fault


def _size(expr: Any, symbols: Mapping[str, str]) -> Dim:
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        if str(expr) not in symbols:
            raise NoSize(str(expr))
        return symbols[str(expr)]
    parts = [_size(part, symbols) for part in expr.args]
    match type(expr).__name__:
        case "Add":
            return add(*parts)
        case "Mul":
            return product(parts)
        case "Pow" if isinstance(parts[1], int) and 0 < parts[1] < 4:
            return multiply(*[parts[0]] * parts[1])
        case "FloorDiv" | "CleanDiv":
            return floor_divide(*parts)
        case "Mod" | "PythonMod":
            return subtract(parts[0], multiply(parts[1], floor_divide(*parts)))
        case "Max":
            return largest(*parts)
        case "Min":
            return smallest(*parts)
    raise NoSize(str(expr))


def product(parts: list[Dim]) -> Dim:
    if "batch" in parts and "seq" in parts:
        parts = list(parts)
        parts.remove("batch")
        parts.remove("seq")
        parts.append("tokens")
    return multiply(*parts)

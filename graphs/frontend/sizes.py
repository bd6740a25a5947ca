"""Sizes as torch writes them (sympy expressions of symbols) → sizes of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferrum.graphs.dims import Dim, DimFault, add, floor_divide, largest, multiply, smallest, subtract, terms_of


class NoSize(ValueError):
    """A size that has no form in the graph."""


def size_of(expr: Any, symbols: Mapping[str, str], most: Mapping[str, int] | None = None) -> Dim:
    """``expr`` with its symbols named by ``symbols``, which are 1 or more and at most what ``most`` says; batch times seq is
    tokens. Raises ``NoSize``."""
    try:
        return _size(expr, symbols, most or {})
    except DimFault as fault:
        raise NoSize(str(fault)) from fault


def _size(expr: Any, symbols: Mapping[str, str], most: Mapping[str, int]) -> Dim:
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        if str(expr) not in symbols:
            raise NoSize(str(expr))
        return symbols[str(expr)]
    parts = [_size(part, symbols, most) for part in expr.args]
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
            return largest(*_above(parts, most))
        case "Min":
            return smallest(*(multiply(-1, part) for part in _above([multiply(-1, part) for part in parts], most)))
    raise NoSize(str(expr))


def _above(parts: list[Dim], most: Mapping[str, int]) -> list[Dim]:
    """``parts`` without those that another one is never below."""
    kept = list(parts)
    for part in parts:
        others = [other for other in kept if other is not part]
        if part in kept and any((low := _least(subtract(other, part), most)) is not None and low >= 0 for other in others):
            kept = others
    return kept


def _least(dim: Dim, most: Mapping[str, int]) -> int | None:
    """What a sum of names and numbers is at least; None: not known."""
    total = 0
    for mono, factor in terms_of(dim).items():
        name = mono[0] if mono else ""
        if len(mono) > 1 or not isinstance(name, str) or (factor < 0 and mono and name not in most):
            return None
        total += factor * (most[name] if factor < 0 and mono else 1)
    return total


def product(parts: list[Dim]) -> Dim:
    if "batch" in parts and "seq" in parts:
        parts = list(parts)
        parts.remove("batch")
        parts.remove("seq")
        parts.append("tokens")
    return multiply(*parts)

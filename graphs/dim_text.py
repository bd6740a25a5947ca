"""Sizes in the text form: ``2 * tokens + (frames + 1) // 2``, ``max(a, b)``; names as everywhere in it."""

from __future__ import annotations

from ferrum.graphs.dims import Dim, DimFault, add, floor_divide, largest, multiply, smallest
from ferrum.graphs.lines import Line

MAX_DEPTH = 16
EXTREMES = {"max": largest, "min": smallest}


def parse_dim(line: Line, depth: int = 0) -> Dim:
    """A sum; what it spells is brought to normal form."""
    if depth > MAX_DEPTH:
        raise line.fault(f"at most {MAX_DEPTH} parentheses in one another")
    try:
        total = product(line, depth)
        while line.peek("+") or line.peek("-"):
            sign = 1 if line.take("+") else -line.take("-")
            total = add(total, multiply(sign, product(line, depth)))
        return total
    except DimFault as fault:
        raise line.fault(f"a size that can be ({fault})") from fault


def product(line: Line, depth: int) -> Dim:
    total = factor(line, depth)
    while line.peek("*") or line.peek("//"):
        total = multiply(total, factor(line, depth)) if line.take("*") else quotient(total, line, depth)
    return total


def quotient(numerator: Dim, line: Line, depth: int) -> Dim:
    line.expect("//")
    return floor_divide(numerator, factor(line, depth))


def factor(line: Line, depth: int) -> Dim:
    if line.take("("):
        inner = parse_dim(line, depth + 1)
        line.expect(")")
        return inner
    if line.ahead("("):
        for word, extreme in EXTREMES.items():
            if line.take(word):
                return extreme(*arguments(line, depth))
    value = line.number_or()
    if isinstance(value, float):
        raise line.fault("a whole number")
    return line.string("a size") if value is None else value


def arguments(line: Line, depth: int) -> list[Dim]:
    line.expect("(")
    out = [parse_dim(line, depth + 1)]
    while not line.take(")"):
        line.expect(",")
        out.append(parse_dim(line, depth + 1))
    return out

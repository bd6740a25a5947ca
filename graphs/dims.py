"""Sizes of axes: numbers, names and expressions of them in one normal form, so that equal forms are equal sizes.

A ``Dim`` is an int, a name (``"tokens"``) or a ``DimExpr``: a sum of products of names, floor quotients and extremes with
integer factors. Expressions are made by the functions here, which bring them to normal form; two that are equal as values of
Python are equal for every size of their names. (The reverse does not hold: floors have identities that no rule here knows.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as pairs
from typing import TypeAlias

MAX_ATOMS = 100  # names and numbers in one expression, those in quotients and extremes counted


class DimFault(ValueError):
    """An expression that no axis can have: a division by what is not positive, or more terms than any model needs."""


@dataclass(frozen=True, slots=True)
class Floor:
    """numerator // divisor, rounded down; the divisor is positive."""

    numerator: Dim
    divisor: Dim


@dataclass(frozen=True, slots=True)
class Extreme:
    """The largest (``kind`` max) or the smallest (min) of two or more sizes."""

    kind: str
    of: tuple[Dim, ...]


Atom: TypeAlias = "str | Floor | Extreme"
Monomial: TypeAlias = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class DimExpr:
    """The sum of factor * product(monomial) over ``terms``, sorted; a constant is the term of the empty monomial, the last."""

    terms: tuple[tuple[Monomial, int], ...]

    def __str__(self) -> str:
        return print_dim(self)

    def __int__(self) -> int:
        raise ValueError(f"{self} is no number")  # as int("tokens") does


Dim: TypeAlias = "int | str | DimExpr"


def terms_of(dim: Dim) -> dict[Monomial, int]:
    if isinstance(dim, DimExpr):
        return dict(dim.terms)
    return {(dim,): 1} if isinstance(dim, str) else {(): dim} if dim else {}


def from_terms(terms: Mapping[Monomial, int]) -> Dim:
    kept = [(mono, factor) for mono, factor in terms.items() if factor]
    if not kept:
        return 0
    if sum(1 + sum(map(_atoms, mono)) for mono, _ in kept) > MAX_ATOMS:
        raise DimFault(f"a size of more than {MAX_ATOMS} parts")
    if len(kept) == 1:
        mono, factor = kept[0]
        if not mono:
            return factor
        if factor == 1 and len(mono) == 1 and isinstance(mono[0], str):
            return mono[0]
    return DimExpr(tuple(sorted(kept, key=lambda term: (not term[0], [_key(atom) for atom in term[0]]))))


def _atoms(atom: Atom) -> int:
    if isinstance(atom, str):
        return 1
    inner = (atom.numerator, atom.divisor) if isinstance(atom, Floor) else atom.of
    return 1 + sum(sum(map(_atoms, mono)) + 1 for dim in inner for mono in terms_of(dim))


def add(*dims: Dim) -> Dim:
    total: dict[Monomial, int] = {}
    for dim in dims:
        for mono, factor in terms_of(dim).items():
            total[mono] = total.get(mono, 0) + factor
    return from_terms(total)


@lru_cache(4096)  # a model has few sizes, and every verification asks for the same ones
def multiply(*dims: Dim) -> Dim:
    out: Dim = 1
    for dim in dims:
        total: dict[Monomial, int] = {}
        for (left, x), (right, y) in pairs(terms_of(out).items(), terms_of(dim).items()):
            mono = tuple(sorted((*left, *right), key=_key))
            total[mono] = total.get(mono, 0) + x * y
        out = from_terms(total)
    return out


def subtract(a: Dim, b: Dim) -> Dim:
    return add(a, multiply(-1, b))


def floor_divide(a: Dim, b: Dim) -> Dim:
    """a // b, rounded down. Whole parts leave the quotient, common factors are divided out, quotients of quotients are one."""
    if isinstance(b, int):
        if b < 1:
            raise DimFault(f"a size divided by {b}")
        return _floor_by(a, b)
    if a in (0, b):
        return int(a == b)
    exact = _quotient(a, b)
    return from_terms({(Floor(a, b),): 1}) if exact is None else exact


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b where b is one product that every term of a holds."""
    terms = terms_of(b)
    if len(terms) != 1:
        return None
    ((mono, factor),) = terms.items()
    found: dict[Monomial, int] = {}
    for atoms, times in terms_of(a).items():
        left = list(atoms)
        for atom in mono:
            if atom not in left:
                return None
            left.remove(atom)
        if times % factor:
            return None
        found[tuple(left)] = times // factor
    return from_terms(found)


def _floor_by(a: Dim, b: int) -> Dim:
    terms = terms_of(a)
    whole = from_terms({mono: factor // b for mono, factor in terms.items()})
    rest = {mono: factor % b for mono, factor in terms.items() if factor % b}
    common = math.gcd(b, *(factor for mono, factor in rest.items() if mono))
    b //= common
    rest = {mono: factor // common for mono, factor in rest.items() if factor // common}
    if b == 1 or not any(rest):
        return add(whole, from_terms(rest) if b == 1 else 0)
    inner = from_terms(rest)
    if isinstance(inner, DimExpr) and len(inner.terms) == 1:
        (mono, factor), *_ = inner.terms
        if factor == 1 and len(mono) == 1 and isinstance(mono[0], Floor) and isinstance(mono[0].divisor, int):
            return add(whole, floor_divide(mono[0].numerator, mono[0].divisor * b))
    return add(whole, from_terms({(Floor(inner, b),): 1}))


def ceil_divide(a: Dim, b: Dim) -> Dim:
    """a / b, rounded up."""
    return floor_divide(add(a, b, -1), b)


def largest(*dims: Dim) -> Dim:
    return _extreme("max", dims)


def smallest(*dims: Dim) -> Dim:
    return _extreme("min", dims)


def _extreme(kind: str, dims: Iterable[Dim]) -> Dim:
    sign = 1 if kind == "max" else -1
    kept: list[Dim] = []
    for dim in (part for d in dims for part in _parts(kind, d)):
        gaps = [subtract(dim, other) for other in kept]
        if any(isinstance(gap, int) and sign * gap <= 0 for gap in gaps):
            continue
        kept = [other for other, gap in zip(kept, gaps, strict=True) if not isinstance(gap, int)] + [dim]
    if not kept:
        raise DimFault(f"the {kind} of nothing")
    return kept[0] if len(kept) == 1 else from_terms({(Extreme(kind, tuple(sorted(kept, key=lambda d: print_dim(d, repr)))),): 1})


def _parts(kind: str, dim: Dim) -> tuple[Dim, ...]:
    if isinstance(dim, DimExpr) and len(dim.terms) == 1:
        (mono, factor), *_ = dim.terms
        if factor == 1 and len(mono) == 1 and isinstance(mono[0], Extreme) and mono[0].kind == kind:
            return mono[0].of
    return (dim,)


def rebuild(dim: Dim, name: Callable[[str], Dim]) -> Dim:
    """``dim`` with every name replaced by what ``name`` gives for it."""

    def atom(a: Atom) -> Dim:
        if isinstance(a, str):
            return name(a)
        if isinstance(a, Floor):
            return floor_divide(rebuild(a.numerator, name), rebuild(a.divisor, name))
        return _extreme(a.kind, [rebuild(d, name) for d in a.of])

    return add(*(multiply(factor, *map(atom, mono)) for mono, factor in terms_of(dim).items()))


def substitute(dim: Dim, names: Mapping[str, Dim]) -> Dim:
    """``dim`` with names replaced by sizes; a name that is not in ``names`` stays."""
    if isinstance(dim, str):
        return names.get(dim, dim)
    return rebuild(dim, lambda name: names.get(name, name)) if isinstance(dim, DimExpr) else dim


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The number that ``dim`` is. Raises KeyError for a name without a size, ``DimFault`` for a division by nothing."""
    if isinstance(dim, int):
        return dim
    value = sizes[dim] if isinstance(dim, str) else rebuild(dim, lambda name: sizes[name])
    assert isinstance(value, int)
    return value


@lru_cache(4096)
def symbols(dim: Dim) -> frozenset[str]:
    """The names in ``dim``."""
    found: set[str] = set()

    def name(text: str) -> Dim:
        found.add(text)
        return text

    rebuild(dim, name)
    return frozenset(found)


def print_dim(dim: Dim, name: Callable[[str], str] = str) -> str:
    """``2 * tokens + (frames + 1) // 2``; names are written by ``name``."""
    if isinstance(dim, int):
        return str(dim)
    if isinstance(dim, str):
        return name(dim)
    text = ""
    for mono, factor in dim.terms:
        sign = " - " if factor < 0 else " + "
        part = _product(mono, abs(factor) if text else factor, name)
        text = f"{text}{sign}{part}" if text else part
    return text


def _product(mono: Monomial, factor: int, name: Callable[[str], str]) -> str:
    if not mono:
        return str(factor)
    if factor == 1 and len(mono) == 1:
        return _atom(mono[0], name)
    factors = [f"({_atom(atom, name)})" if isinstance(atom, Floor) else _atom(atom, name) for atom in mono]
    return " * ".join(([str(factor)] if factor != 1 else []) + factors)


def _atom(atom: Atom, name: Callable[[str], str]) -> str:
    if isinstance(atom, str):
        return name(atom)
    if isinstance(atom, Extreme):
        return f"{atom.kind}({', '.join(print_dim(d, name) for d in atom.of)})"
    sides = (f"({print_dim(d, name)})" if isinstance(d, DimExpr) else print_dim(d, name) for d in (atom.numerator, atom.divisor))
    return " // ".join(sides)


def _key(atom: Atom) -> tuple[bool, str]:
    return not isinstance(atom, str), _atom(atom, repr)

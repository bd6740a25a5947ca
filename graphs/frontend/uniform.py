"""Tensors that hold one number, whatever their size: what a model numbers where there is nothing to number (no pictures, say)."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.dims import symbols
from ferrum.graphs.ir import Node
from ferrum.graphs.op_spec import number
from ferrum.graphs.rewrite import Scope
from ferrum.graphs.tables import ELEMENTWISE, SCALAR, NotATable, Tables, cone, constants

MOST = 1 << 14  # elements that are looked at
MOVED = frozenset({"reshape", "expand", "permute", "slice", "repeat", "take", "gather"})


def uniform(scope: Scope, name: str) -> float | None:
    """The number that every element of ``name`` is; None: not known."""
    key = ("uniform", name)
    if key not in scope.memo:
        node = scope.nodes.get(name) if name in scope.tables else None
        scope.memo[key] = None if node is None else made(scope, node)
    return scope.memo[key]  # type: ignore[return-value]


def made(scope: Scope, node: Node) -> float | None:
    if node.op == "full":
        return number(node.attrs, "value")
    if node.op in MOVED:
        return uniform(scope, node.inputs[0])
    numbers = [uniform(scope, one) for one in node.inputs]
    if node.op == "where" and numbers[0] is not None:
        return numbers[1] if numbers[0] else numbers[2]
    known = [n for n in numbers if n is not None]
    if not known or len(known) < len(numbers):
        return None
    return computed(node, known)


def computed(node: Node, known: list[float]) -> float | None:
    """What ``node`` makes of one number for each input."""
    first, of = known[0], node.output.dtype
    if node.op == "cat":
        return first if len(set(known)) == 1 else None
    if node.op == "cast":
        return first if of == "f32" else float(bool(first)) if of == "bool" else float(int(first))
    if node.op == "cumsum":
        return 0.0 if first == 0 else None
    with np.errstate(all="ignore"):
        if node.op in ELEMENTWISE:
            return float(ELEMENTWISE[node.op](*map(np.float64, known)))
        return float(SCALAR[node.op](np.asarray(first), number(node.attrs, "value"))) if node.op in SCALAR else None


def settled(scope: Scope, name: str) -> float | None:
    """The truth value that a comparison of places has everywhere, looked at beyond all numbers that it is computed with; None: it
    differs, or is not known. Models ask whether each place follows the one before it: several texts may share a row, not here."""
    if name not in scope.tables or any(leaf in scope.params for node in cone(name, scope.nodes) for leaf in node.inputs):
        return None
    shape, numbers = scope.types[name].shape, constants(name, scope.nodes)
    found = set()
    for size in (2 * max(numbers, default=0) + 8, 2 * max(numbers, default=0) + 13):
        tables = Tables(scope.nodes, scope.params, scope.types, {"batch": 2, "seq": size, "tokens": 2 * size})
        sizes = tables.shape(shape)
        if not any(map(symbols, shape)) or np.prod(sizes, dtype=np.float64) > MOST:
            return None
        try:
            found |= {float(value) for value in np.unique(tables.at(name, tuple(np.indices(sizes).reshape(len(sizes), -1))))}
        except NotATable:
            return None
    return found.pop() if len(found) == 1 else None

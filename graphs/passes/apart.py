"""apart: a matrix whose rows are quantized in several ways is stored as one for each, so that all of them stay as they are.

Query, key and value are joined before anyone knows what a target stores. Where the checkpoint has the rows of one in other blocks
than those of the others, the joined matrix has none; here it becomes several, whose products are joined instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, groupby, pairwise
from typing import Protocol

from ferrum.graphs.expressions.expression import Blocked, Cat, Expr, cat, rows
from ferrum.graphs.ir import Graph, Node, Param, Value


class Keeper(Protocol):
    def apart(self, blocked: Sequence[Blocked | None]) -> bool:
        """Whether rows that are quantized in these ways, one after the other, are to be stored each on its own."""


def run(graph: Graph, policy: Keeper) -> Graph:
    params = {param.name: [param] for param in graph.params}
    users, nodes = graph.users(), []
    for node in graph.nodes:
        pieces = _pieces(node, params) if all(len(users[name]) == 1 for name in node.inputs[1:]) else []
        if len(pieces) < 2 or not policy.apart([piece.type.blocked for piece in pieces]):
            nodes.append(node)
            continue
        ends = [0, *accumulate(piece.type.shape[0] for piece in pieces)]
        for name in node.inputs[1:]:
            (param,) = params[name]
            params[name] = [_part(param, number, low, high) for number, (low, high) in enumerate(pairwise(ends))]
        nodes += _products(node, [params[name] for name in node.inputs[1:]])
    return replace(graph, params=tuple(part for parts in params.values() for part in parts), nodes=tuple(nodes))


def _pieces(node: Node, params: dict[str, list[Param]]) -> list[Expr]:
    """The parts of a product's matrix, neighbours with the same blocks as one; nothing where it cannot be taken apart."""
    if node.op != "linear" or node.attrs["has_residual"] or node.attrs["activation"]:
        return []
    stored = [params[name][0].weight for name in node.inputs[1:] if name in params]
    if len(stored) != len(node.inputs) - 1 or None in stored or not isinstance(stored[0], Cat) or stored[0].axis:
        return []
    return [cat(list(parts), 0) for _, parts in groupby(stored[0].parts, lambda part: part.type.blocked)]


def _part(param: Param, number: int, low: int, high: int) -> Param:
    assert param.weight is not None
    stem, _, last = param.name.rpartition(".")
    value = Value(f"{stem}.{number}.{last}", param.value.dtype, (high - low, *param.shape[1:]))
    return replace(param, value=value, source=rows(param.weight, 0, low, high))


def _products(node: Node, params: list[list[Param]]) -> list[Node]:
    """One for each part of the matrix, and what joins their columns."""
    out, made = node.output, []
    for number, parts in enumerate(zip(*params, strict=True)):
        value = Value(f"{out.name}.{number}", out.dtype, (*out.shape[:-1], parts[0].shape[0]))
        made.append(replace(node, inputs=(node.inputs[0], *(part.name for part in parts)), outputs=(value,)))
    joined = Node("cat", tuple(each.output.name for each in made), node.outputs, {"axis": len(out.shape) - 1}, node.origin)
    return [*made, joined]

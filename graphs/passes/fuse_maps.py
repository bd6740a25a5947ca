"""Neighbouring pointwise ops → one ``map``: an expression over elements, computed in one pass over them.

Whatever no earlier pass has made an op of its own is left here as sums, products and functions of elements. Each of them goes
into the map of those that read it, if nobody else does, so that what lies between them is never stored. An op that is read by
others than one map is the end of a map. Shapes differ only by broadcasting; what moves elements ends a map too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ferrum.graphs.infer_region import ELEMENT_OPS
from ferrum.graphs.ir import Graph, Node, Region, Shape, Value
from ferrum.graphs.op_spec import broadcast, count
from ferrum.graphs.ops import GATES
from ferrum.graphs.rewrite import live

MOST_INPUTS = 16
# Worth computing once where a larger map would need it for several elements.
COSTLY = frozenset(
    ("exp", "log", "log1p", "expm1", "cos", "sin", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh", "pow", "gated")
)


def maps(node: Node) -> bool:
    """Whether ``node`` computes elements one by one, of others."""
    return (node.op in ELEMENT_OPS and bool(node.inputs)) or node.op == "gated"


@dataclass
class Maps:
    """The maps of a graph under construction, by the names of their results. ``numbers``: constants of one number."""

    graph: Graph

    def __post_init__(self) -> None:
        self.types, self.users = self.graph.values(), self.graph.users()
        self.numbers = {node.output.name: node for node in self.graph.nodes if node.op == "full"}
        self.home: dict[str, str] = {}  # the map that each node goes into
        self.members: dict[str, list[Node]] = {}
        self.inputs: dict[str, set[str]] = {}

    def group(self) -> dict[str, list[Node]]:
        """The nodes of each map, in order."""
        for node in reversed([node for node in self.graph.nodes if maps(node)]):
            name, home = node.output.name, self.reader(node) or node.output.name
            self.home[name] = home
            self.members.setdefault(home, []).append(node)
            self.inputs[home] = self.widened(home, node)
        return {name: nodes[::-1] for name, nodes in self.members.items()}

    def reader(self, node: Node) -> str:
        """The map that ``node`` may go into: that of all its readers."""
        name = node.output.name
        homes = {self.home.get(user.output.name, "") for user in self.users.get(name, ())}
        if len(homes) != 1 or name in self.graph.outputs or not (home := homes.pop()):
            return ""
        repeated = node.op in COSTLY and count(self.types[home].shape) != count(node.output.shape)
        return "" if repeated or len(self.widened(home, node)) > MOST_INPUTS else home

    def widened(self, home: str, node: Node) -> set[str]:
        """What the map reads once ``node`` is in it."""
        return (self.inputs.get(home, set()) - {node.output.name}) | {name for name in node.inputs if name not in self.numbers}

    def fused(self, nodes: list[Node]) -> Node:
        """The map of ``nodes``, in whose body every value is one element."""
        inside = {node.output.name for node in nodes}
        named = dict.fromkeys(name for node in nodes for name in node.inputs if name not in inside)
        outer, result = [name for name in named if name not in self.numbers], nodes[-1]
        shape: Shape = ()
        for name in outer:
            shape = broadcast(shape, self.types[name].shape)
        if not outer or shape != result.output.shape:  # a constant says how often: it is read where it lies
            outer = list(named)
        names = {name: f"x{number}" for number, name in enumerate(outer)}
        made: list[Node] = []
        for name in (name for name in named if name not in names):
            names[name] = f"c{len(made)}"
            made.append(Node("full", (), (Value(names[name], self.types[name].dtype, ()),), dict(self.numbers[name].attrs)))
        made += [part for node in nodes for part in element(node, names)]
        given = tuple(Value(names[name], self.types[name].dtype, ()) for name in outer)
        region = Region(given, tuple(made), (names[result.output.name],))
        return Node("map", tuple(outer), result.outputs, {}, result.origin, (region,))


def element(node: Node, names: dict[str, str]) -> Iterator[Node]:
    """``node`` on single elements; a ``gated`` is the activation of the one times the other."""
    inputs = tuple(names[name] for name in node.inputs)
    stem = f"{node.op}.{len(names)}"
    names[node.output.name] = stem
    value = Value(stem, node.output.dtype, ())
    if node.op != "gated":
        yield Node(node.op, inputs, (value,), node.attrs)
        return
    act = Value(f"{stem}.act", value.dtype, ())
    yield Node(GATES[str(node.attrs["activation"])], inputs[:1], (act,), {})
    yield Node("mul", (act.name, inputs[1]), (value,), {})


def run(graph: Graph) -> Graph:
    """``graph`` with every pointwise op in a map."""
    made = Maps(graph)
    found = made.group()
    if not found:
        return graph
    kept = [node for node in graph.nodes if made.home.get(node.output.name, node.output.name) == node.output.name]
    nodes, used = live([made.fused(found[n.output.name]) if n.output.name in found else n for n in kept], graph.outputs)
    return replace(graph, nodes=tuple(nodes), params=tuple(param for param in graph.params if param.name in used))

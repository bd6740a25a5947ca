"""layout: every weight gets a number format and a physical layout, and rows are converted before each product.

What fits a target is decided by a ``LayoutPolicy`` that the code generator supplies; the pass only applies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from ferrum.graphs.expressions.expression import Blocked
from ferrum.graphs.ir import Graph, Node, Param, Shape, Value
from ferrum.graphs.passes.apart import Keeper

EMBEDDING, HEAD, BODY = "embedding", "head", "body"
PRODUCTS = ("linear", "grouped_linear")  # of activations and a stored matrix, or one of a stack


@dataclass(frozen=True)
class Choice:
    """A weight's format and layout, and the activation format of products with it (``f32``: none to convert)."""

    format: str
    layout: str
    act: str


class LayoutPolicy(Keeper, Protocol):
    def matrix(self, role: str, n: int, k: int, halves: int, blocked: Blocked | None) -> Choice:
        """The choice for an ``[n, k]`` matrix, or each of a stack; ``role`` is embedding (looked up only), head (the logits) or
        body, ``blocked`` how the checkpoint quantizes it, axis 1 being that of ``k``."""


def blocks_of(param: Param) -> Blocked | None:
    """How the checkpoint quantizes a matrix, or each of a stack, where its expression keeps the blocks."""
    blocked = param.weight.type.blocked if param.weight is not None else None
    return blocked and replace(blocked, axis=blocked.axis - len(param.shape) + 2)


def run(graph: Graph, policy: LayoutPolicy) -> Graph:
    """Set format and layout of all parameters; insert a ``quantize`` node where a product wants other rows."""
    choices = choose(graph, policy)
    params = tuple(_with_choice(p, choices.get(p.name)) for p in graph.params)
    nodes: list[Node] = []
    converted: dict[tuple[str, str], str] = {}
    for node in graph.nodes:
        if node.op == "linear" and choices[node.inputs[1]].act != "f32":
            source, act = node.inputs[0], choices[node.inputs[1]].act
            if (source, act) not in converted:
                shape = graph.values()[source].shape if not nodes else _shape(graph, nodes, source)
                output = Value(f"{source}.{act}", "q8" if act.startswith("q8") else act, shape)
                nodes.append(Node("quantize", (source,), (output,), {"act": act}, node.origin))
                converted[source, act] = output.name
            node = replace(node, inputs=(converted[source, act], *node.inputs[1:]))
        nodes.append(node)
    return replace(graph, params=params, nodes=tuple(nodes))


def _shape(graph: Graph, nodes: list[Node], name: str) -> Shape:
    for node in reversed(nodes):
        if node.output.name == name:
            return node.output.shape
    return graph.values()[name].shape


def choose(graph: Graph, policy: LayoutPolicy) -> dict[str, Choice]:
    """A choice for each parameter that is multiplied with or looked up in; a product's needs win over a look-up's."""
    choices: dict[str, Choice] = {}
    params = {p.name: p for p in graph.params}
    heads = {node.inputs[1] for node in graph.nodes if node.op == "linear" and node.output.name in graph.outputs}
    for op in (*PRODUCTS, "embedding"):
        for node in graph.nodes:
            if node.op != op or node.inputs[1] in choices or node.inputs[1] not in params:
                continue
            param = params[node.inputs[1]]
            n, k = param.shape[-2:]
            role = EMBEDDING if op == "embedding" else HEAD if node.inputs[1] in heads else BODY
            halves = 2 if node.attrs.get("activation") else 1
            choices[param.name] = policy.matrix(role, n, k, halves, blocks_of(param))
    return choices


def differing(graph: Graph, policy: LayoutPolicy) -> Iterator[tuple[Param, str]]:
    """The parameters of a laid-out graph that the policy would lay otherwise, with how."""
    choices = choose(graph, policy)
    for param in graph.params:
        wanted = _with_choice(param, choices.get(param.name))
        if (param.format, param.layout) != (wanted.format, wanted.layout):
            yield param, f"{wanted.format} as {wanted.layout}"


def undone(graph: Graph) -> Graph:
    """A laid-out graph as it was before; another one stays as it is."""
    before = {node.output.name: node.inputs[0] for node in graph.nodes if node.op == "quantize"}
    nodes = [replace(n, inputs=tuple(before.get(name, name) for name in n.inputs)) for n in graph.nodes if n.op != "quantize"]
    return replace(graph, nodes=tuple(nodes), params=tuple(replace(p, format="", layout="") for p in graph.params))


def _with_choice(param: Param, choice: Choice | None) -> Param:
    if choice is None:
        return replace(param, format="f32", layout="rows")
    return replace(param, format=choice.format, layout=choice.layout)

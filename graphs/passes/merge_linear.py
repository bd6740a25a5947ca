"""Linears that read the same input become one: query, key and value of an attention; gate and up of an MLP.

The merged parameter joins theirs along axis 0. Query, key and value are then column slices of one value, which the
paged attention reads as a whole; gate and up rows go into the activation (``silu_mul`` and its like) of one linear.
"""

from __future__ import annotations

from dataclasses import replace

from ferrum.graphs.expressions.expression import cat
from ferrum.graphs.ir import Graph, Node, Param
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite

HEAD_OPS = ("rope", "rms_norm", "reshape")


def joined_name(names: tuple[str, ...]) -> str:
    """``a.q_proj.weight``, ``a.k_proj.weight`` → ``a.q_proj+k_proj.weight``."""
    parts = [name.split(".") for name in names]
    if len({len(p) for p in parts}) != 1:
        return "+".join(names)
    return ".".join("+".join(dict.fromkeys(column)) for column in zip(*parts, strict=True))


def join(s: Scope, names: tuple[str, ...]) -> str | None:
    """The parameter whose rows are those of ``names`` in order; None if one of them is not a plain parameter."""
    params = [s.params.get(name) for name in names]
    known = [p for p in params if p is not None]
    sources = [p.weight for p in known if p.weight is not None]
    if len(sources) != len(names) or any(p.format for p in known) or len({p.shard for p in known}) != 1:
        return None
    source = cat(sources, 0)
    return s.add_param(Param(replace(known[0].value, name=joined_name(names), shape=source.type.shape), source, known[0].shard))


def mergeable(nodes: list[Node | None]) -> list[Node] | None:
    """``nodes`` if they are plain linears of the same input and all or none have a bias."""
    known = [n for n in nodes if n is not None]
    if len(known) != len(nodes) or len({n.inputs[0] for n in known}) != 1:
        return None
    if any(n.attrs["has_residual"] or n.attrs["activation"] for n in known) or len({n.attrs["has_bias"] for n in known}) != 1:
        return None
    return known


def merge(s: Scope, nodes: list[Node], activation: str) -> str | None:
    weight = join(s, tuple(n.inputs[1] for n in nodes))
    bias = join(s, tuple(n.inputs[2] for n in nodes)) if nodes[0].attrs["has_bias"] else ""
    if weight is None or bias is None:
        return None
    inputs = (nodes[0].inputs[0], weight, *([bias] if bias else []))
    return s.emit("linear", *inputs, has_bias=bool(bias), has_residual=False, activation=activation)


def gate_and_up(s: Scope, m: Match) -> str | None:
    nodes = mergeable([s.node(m["gate"], "linear"), s.node(m["up"], "linear")])
    return None if nodes is None else merge(s, nodes, str(s.attr(m["root"], "activation")))


def chain(s: Scope, name: str) -> tuple[list[Node], str]:
    """The head-wise nodes from an attention input back to the flat value that they read, and that value."""
    nodes: list[Node] = []
    node = s.node(name)
    while node is not None and node.op in HEAD_OPS:
        nodes.append(node)
        name = node.inputs[0]
        node = s.node(name)
    return nodes, name


def query_key_value(s: Scope, m: Match) -> str | None:
    chains = [chain(s, m[key]) for key in ("q", "k", "v")]
    nodes = mergeable([s.node(flat, "linear") for _, flat in chains])
    if nodes is None or len({n.output.name for n in nodes}) != 3:
        return None
    merged = merge(s, nodes, "")
    if merged is None:
        return None
    start, inputs = 0, []
    for (steps, _), linear in zip(chains, nodes, strict=True):
        width = int(linear.output.shape[-1])
        name = s.emit("slice", merged, axis=len(linear.output.shape) - 1, start=start, end=start + width)
        for step in reversed(steps):
            shape = step.output.shape if step.op == "reshape" else None
            name = s.copy(step, name, *step.inputs[1:], shape=shape)
        inputs.append(name)
        start += width
    return s.copy(s.nodes[m["root"]], *inputs)


RULES: Rules = (
    (P("gated", "gate", "up"), gate_and_up),
    (P("attend", "q", "k", "v"), query_key_value),
)


def run(graph: Graph) -> Graph:
    return rewrite(graph, RULES)

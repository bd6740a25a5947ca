"""linear(x) + y → ``linear`` with y as its residual input, where nothing else reads the linear's result."""

from __future__ import annotations

from ferrum.graphs.ir import Graph
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite


def fuse(s: Scope, m: Match) -> str | None:
    node = s.nodes[m["linear"]]
    if node.attrs["has_residual"] or node.attrs["activation"] or s.uses[m["linear"]] > 1:
        return None
    if m["y"] == m["linear"] or s.shape(m["y"]) != node.output.shape:
        return None
    return s.copy(node, *node.inputs, m["y"], has_residual=True)


RULES: Rules = (
    (P("add", P("linear", "x", "w", bind="linear"), "y"), fuse),
    (P("add", P("linear", "x", "w", "b", bind="linear"), "y"), fuse),
)


def run(graph: Graph) -> Graph:
    return rewrite(graph, RULES)

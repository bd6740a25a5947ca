"""silu(gate) * up, and the same with another activation → ``gated``."""

from __future__ import annotations

from ferrum.graphs.ir import Graph
from ferrum.graphs.ops import GATES
from ferrum.graphs.rewrite import Function, Match, P, Rules, Scope, rewrite


def fuse(activation: str) -> Function:
    def function(s: Scope, m: Match) -> str | None:
        if s.shape(m["gate"]) != s.shape(m["up"]):
            return None
        return s.emit("gated", m["gate"], m["up"], activation=activation)

    return function


RULES: Rules = tuple((P("mul", P(op, "gate"), "up"), fuse(activation)) for activation, op in GATES.items())


def run(graph: Graph) -> Graph:
    return rewrite(graph, RULES)

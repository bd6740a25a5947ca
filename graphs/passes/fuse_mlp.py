"""silu(gate) * up → ``silu_mul``."""

from __future__ import annotations

from ferrum.graphs.ir import Graph
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite


def fuse(s: Scope, m: Match) -> str | None:
    if s.shape(m["gate"]) != s.shape(m["up"]):
        return None
    return s.emit("silu_mul", m["gate"], m["up"])


RULES: Rules = ((P("mul", P("silu", "gate"), "up"), fuse),)


def run(graph: Graph) -> Graph:
    return rewrite(graph, RULES)

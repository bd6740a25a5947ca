"""x * rsqrt(mean(x²) + eps) * weight → ``rms_norm``, in any order of the factors; norms move before permutes of other axes.

An RMSNorm of x - mean(x) is a ``layer_norm``, and so is its sum with a bias.
"""

from __future__ import annotations

from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.canonicalize import FORM
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite

SCALE = P("rsqrt", P("add_scalar", P("mean", P("pow_scalar", "x", value=2.0), bind="mean", keepdim=True), bind="eps"))


def fuse(s: Scope, m: Match) -> str | None:
    shape = s.shape(m["x"])
    if s.shape(m["w"]) != shape[-1:] or s.attr(m["mean"], "axis") != len(shape) - 1:
        return None
    return s.emit("rms_norm", m["x"], m["w"], eps=s.number(m["eps"]))


def before_permute(s: Scope, m: Match) -> str | None:
    order = s.order(m["p"])
    if order[-1] != len(order) - 1:
        return None
    return s.emit("permute", s.emit("rms_norm", m["x"], m["w"], eps=s.number(m["root"], "eps")), order=order)


def centered(s: Scope, m: Match) -> str | None:
    if s.attr(m["mean"], "axis") != len(s.shape(m["x"])) - 1:
        return None
    return s.emit("layer_norm", m["x"], m["w"], eps=s.number(m["root"], "eps"), has_bias=False)


def bias(s: Scope, m: Match) -> str | None:
    if m["b"] not in s.params or s.shape(m["b"]) != s.shape(m["x"])[-1:]:
        return None
    return s.emit("layer_norm", m["x"], m["w"], m["b"], eps=s.number(m["norm"], "eps"), has_bias=True)


RULES: Rules = (
    (P("mul", P("mul", "x", SCALE), "w"), fuse),
    (P("mul", "x", P("mul", SCALE, "w")), fuse),
    (P("mul", P("mul", "x", "w"), SCALE), fuse),
    (P("rms_norm", P("permute", "x", bind="p"), "w"), before_permute),
    (P("rms_norm", P("sub", "x", P("mean", "x", bind="mean", keepdim=True)), "w"), centered),
    (P("add", P("layer_norm", "x", "w", bind="norm"), "b"), bias),
)


def run(graph: Graph) -> Graph:
    return rewrite(graph, (*RULES, *FORM))

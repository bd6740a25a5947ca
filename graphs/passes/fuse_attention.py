"""Scaled dot product attention → ``attend`` on [batch, seq, heads, head_dim], causal, with a window and shared kv heads.

Masks are recognized by their values (``ferrum.graphs.tables``). Attention written out as matmul, softmax, matmul becomes
``sdpa`` first. Copies of kv heads disappear, a factor on the queries moves into the scale.
"""

from __future__ import annotations

from ferrum.graphs import tables
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.canonicalize import FORM
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite

SWAP = (0, 2, 1, 3)


def window_of(s: Scope, mask: str) -> int | None:
    key = ("window", mask)
    if key not in s.memo:
        s.memo[key] = tables.mask_window(mask, s.nodes, s.params, s.types) if mask in s.tables else None
    found = s.memo[key]
    return found if isinstance(found, int) else None


def emit(s: Scope, q: str, k: str, v: str, scale: float, window: int) -> str:
    inputs = (s.emit("permute", name, order=SWAP) for name in (q, k, v))
    attended = s.emit("attend", *inputs, causal=True, window=window, scale=scale, softcap=0.0, operands=())
    return s.emit("permute", attended, order=SWAP)


def is_causal(s: Scope, m: Match) -> str | None:
    return emit(s, m["q"], m["k"], m["v"], s.number(m["root"], "scale"), 0)


def masked(s: Scope, m: Match) -> str | None:
    window = window_of(s, m["mask"])
    return None if window is None else emit(s, m["q"], m["k"], m["v"], s.number(m["root"], "scale"), window)


def written_out(s: Scope, m: Match) -> str | None:
    """softmax(q kᵀ * scale, masked) v."""
    if s.attr(m["soft"], "axis") != len(s.shape(m["soft"])) - 1 or len(s.shape(m["soft"])) != 4:
        return None
    scores, mask = m["scores"], ""
    added, chosen = s.node(scores, "add"), s.node(scores, "where")
    if added is not None:
        mask, scores = sorted(added.inputs, key=lambda name: name not in s.tables)
    elif chosen is not None:
        condition, yes, no = chosen.inputs
        fill, scores = (no, yes) if no in s.tables else (yes, no)
        low = s.node(fill, "full")
        if low is None or s.number(fill) > tables.MASKED:
            return None
        mask = condition if fill == no else s.emit("not", condition)
    scaled = s.node(scores, "mul_scalar")
    scale = s.number(scores) if scaled is not None else 1.0
    product = s.node(scaled.inputs[0] if scaled is not None else scores, "matmul")
    if product is None or not mask or mask not in s.tables:
        return None
    turned = s.node(product.inputs[1], "permute")
    if turned is None or len(s.shape(product.inputs[1])) != 4:
        return None
    key = s.emit("permute", product.inputs[1], order=(0, 1, 3, 2))
    if s.shape(key) != s.shape(m["v"]):
        return None
    return s.emit("sdpa", product.inputs[0], key, m["v"], mask, is_causal=False, scale=scale)


def query_factor(s: Scope, m: Match) -> str:
    scale = s.number(m["root"], "scale") * s.number(m["f"])
    return s.copy(s.nodes[m["root"]], m["x"], m["k"], m["v"], scale=scale)


def key_factor(s: Scope, m: Match) -> str:
    scale = s.number(m["root"], "scale") * s.number(m["f"])
    return s.copy(s.nodes[m["root"]], m["q"], m["x"], m["v"], scale=scale)


def shared_heads(s: Scope, m: Match) -> str | None:
    a, b = s.nodes[m["a"]].attrs, s.nodes[m["b"]].attrs
    if dict(a) != dict(b) or a["axis"] != 2:
        return None
    return s.copy(s.nodes[m["root"]], m["q"], m["k"], m["v"])


RULES: Rules = (
    (P("matmul", P("softmax", "scores", bind="soft"), "v"), written_out),
    (P("sdpa", "q", "k", "v", is_causal=True), is_causal),
    (P("sdpa", "q", "k", "v", "mask"), masked),
    (P("attend", P("mul_scalar", "x", bind="f"), "k", "v"), query_factor),
    (P("attend", "q", P("mul_scalar", "x", bind="f"), "v"), key_factor),
    (P("attend", "q", P("repeat", "k", bind="a"), P("repeat", "v", bind="b")), shared_heads),
)


def run(graph: Graph) -> Graph:
    return rewrite(graph, (*RULES, *FORM))

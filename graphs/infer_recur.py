"""Shapes of linear recurrences: over whole sequences as a trace has them, and over ragged tokens with a state in a slot."""

from __future__ import annotations

from ferrum.graphs.ir import Value
from ferrum.graphs.op_spec import Attrs, Inputs, Typed, integer, need, show, words


def recur(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """q and k [.., heads, K], v [.., heads, V], decay [.., heads, K] or [.., heads, 1], with ``delta`` beta [.., heads]. Of each
    head: state = decay * state + k ⊗ v, with ``delta`` k ⊗ (beta * (v - state · k)); the result is state · q, as v."""
    need(len(x) == 4 + bool(a["delta"]), f"{len(x)} inputs do not fit delta")
    q, k, v, decay = (value.shape for value in x[:4])
    need({value.dtype for value in x} == {"f32"}, "needs float inputs")
    need(len(q) >= 3 and q == k and v[:-1] == q[:-1], f"q {show(q)}, k {show(k)}, v {show(v)}")
    need(decay in (q, (*q[:-1], 1)), f"decay {show(decay)} of keys {show(k)}")
    need(all(value.shape == q[:-1] for value in x[4:]), f"beta of values {show(v)}")
    return "f32", v


def paged_recur(x: Inputs, a: Attrs, d: Value | None) -> Typed:
    """Rows [tokens, ..] of several sequences, each of which goes on from its state [heads, K, V]."""
    found = recur(x, a, d)
    need(len(x[0].shape) == 3, f"q {show(x[0].shape)} of [tokens, heads, K]")
    need(integer(a, "layer") >= 0, "layer must not be negative")
    need(len(words(a, "states")) == 1, "one state")
    return found

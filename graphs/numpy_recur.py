"""Linear recurrences in numpy, token by token: what no chunking changes."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import Array, Run
from ferrum.graphs.op_spec import words


def recurred(state: Array, q: Array, k: Array, v: Array, decay: Array, beta: Array | None = None) -> tuple[Array, Array]:
    """(the state after the rows [n, heads, ..], their results [n, heads, V])."""
    out = np.empty_like(v)
    for t in range(len(q)):
        state = state * decay[t][..., None]
        value = v[t] if beta is None else beta[t][:, None] * (v[t] - (state * k[t][..., None]).sum(-2))
        state = state + k[t][..., None] * value[:, None]
        out[t] = (state * q[t][..., None]).sum(-2)
    return state, out


def recur(run: Run, node: Node) -> Array:
    """[batch, seq, ..]: each sequence from nothing."""
    q, _, v, *_ = inputs = run.all(node)
    nothing = np.zeros((*q.shape[2:], v.shape[-1]), q.dtype)
    return np.stack([recurred(nothing, *(x[i] for x in inputs))[1] for i in range(len(q))])


def paged_recur(run: Run, node: Node) -> Array:
    inputs = run.all(node)
    held = run.env[words(node.attrs, "states")[0]].state
    out = np.empty_like(inputs[2])
    for seq, tokens, (start, end) in zip(run.sequences.ids, run.sequences.after(), run.sequences.spans("tokens"), strict=True):
        after, out[start:end] = recurred(held.read(seq)[1][0], *(x[start:end] for x in inputs))
        held.write(seq, after[None], tokens)
    return out

"""Toys whose cached blocks depend on what the request brought: each layer attends to its own tokens and to what was heard.

Keys of the second layer are made of rows that have heard, so blocks shared among other inputs give other answers. ``MIXED`` has
states of all kinds: its second layer sees a window, and a decaying sum of its rows lies in a slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ferrum.graphs.interpret import Array
from ferrum.graphs.ir import Graph
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import verify
from tests.graphs.toys import (
    ATTEND,
    FRAMES,
    FREQUENCIES,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LINEAR,
    ROPE,
    VOCAB,
    WIDTH,
    softmax,
    turned,
)

LAYERS = (0, 1)
WINDOW = 5
_HEARD = f"f32[{KV_HEADS}, {WIDTH}] fixed({FRAMES})"


def _kinds(mixed: bool) -> tuple[tuple[str, str, int], ...]:
    """Of each layer: how its states are declared, the dtype of their versions, the window."""
    paged = ("paged", "paged", 0)
    return (paged, (f"window({WINDOW})", "window", WINDOW)) if mixed else (paged, paged)


def _layer(i: int, kind: str, window: int) -> str:
    heads, kv = f"f32[tokens, {HEADS}, {WIDTH}]", f"f32[tokens, {KV_HEADS}, {WIDTH}]"
    return f"""q0.{i}: f32[tokens, 16] = linear(x.{i}, q) {LINEAR}
k0.{i}: f32[tokens, {KV_HEADS * WIDTH}] = linear(x.{i}, k) {LINEAR}
q1.{i}: {heads} = reshape(q0.{i})
k1.{i}: {kv} = reshape(k0.{i})
q2.{i}: {heads} = rope(q1.{i}, positions, freq) {ROPE.format(0)}
k2.{i}: {kv} = rope(k1.{i}, positions, freq) {ROPE.format(0)}
keys.{i}.1: {kind}[{KV_HEADS}, {WIDTH}] = write(keys.{i}, k2.{i})
values.{i}.1: {kind}[{KV_HEADS}, {WIDTH}] = write(values.{i}, k1.{i})
a.{i}: {heads} = attend(q2.{i}, keys.{i}.1, values.{i}.1) {ATTEND.format("true", window)}
b.{i}: {heads} = attend(q1.{i}, heard.keys, heard.values) {ATTEND.format("false", 0)}
c.{i}: {heads} = add(a.{i}, b.{i})
joined.{i}: f32[tokens, 16] = reshape(c.{i})
y.{i}: f32[tokens, {HIDDEN}] = linear(joined.{i}, out) {LINEAR}
x.{i + 1}: f32[tokens, {HIDDEN}] = add(x.{i}, y.{i})
"""


_SUM = f"""held: f32[seqs, {HIDDEN}] = read(sum)
end: f32[seqs, {HIDDEN}], x.3: f32[tokens, {HIDDEN}] = scan(held, x.2, decay) {{carried=1, ragged=true, scanned=1}}
  region
    input h: f32[{HIDDEN}]
    input row: f32[{HIDDEN}]
    input d: f32[{HIDDEN}]
    kept: f32[{HIDDEN}] = mul(h, d)
    next: f32[{HIDDEN}] = add(kept, row)
    return next, next
sum.1: slot[{HIDDEN}] = write(sum, end)
"""


def _graph(mixed: bool) -> Graph:
    kinds = _kinds(mixed)
    states = "".join(f"state {n}.{i}: f32[{KV_HEADS}, {WIDTH}] {kinds[i][0]}\n" for i in LAYERS for n in ("keys", "values"))
    text = f"""graph listener
input tokens: i32[tokens]
input positions: i32[tokens]
{states}state heard.keys: {_HEARD}
state heard.values: {_HEARD}
{f"state sum: f32[{HIDDEN}] slot" if mixed else ""}
param table: f32[{VOCAB}, {HIDDEN}] from(table)
param freq: f32[2] data{FREQUENCIES}
param q: f32[16, {HIDDEN}] from(q)
param k: f32[{KV_HEADS * WIDTH}, {HIDDEN}] from(k)
param out: f32[{HIDDEN}, 16] from(out)
{f"param decay: f32[{HIDDEN}] from(decay)" if mixed else ""}
x.0: f32[tokens, {HIDDEN}] = embedding(tokens, table) {{scale=1.0}}
{"".join(_layer(i, kinds[i][1], kinds[i][2]) for i in LAYERS)}{_SUM if mixed else ""}
logits: f32[tokens, {VOCAB}] = linear(x.{3 if mixed else 2}, table) {LINEAR}
return logits, {", ".join(f"keys.{i}.1, values.{i}.1" for i in LAYERS)}, heard.keys, heard.values{", sum.1" if mixed else ""}
"""
    return verify(parse_graph("".join(line + "\n" for line in text.splitlines() if line)))


LISTENER, MIXED = _graph(False), _graph(True)


def plain_listener(w: Mapping[str, Array], tokens: Sequence[int], frames: Array, mixed: bool = False) -> Array:
    """The logits of all tokens of one sequence that hears ``frames`` [rows, HIDDEN], which may have no rows."""
    x = w["table"][list(tokens)]
    heard_k = (frames @ w["encoder.k"].T).reshape(-1, KV_HEADS, WIDTH)
    heard_v = (frames @ w["encoder.v"].T).reshape(-1, KV_HEADS, WIDTH)
    for layer in LAYERS:
        q = (x @ w["q"].T).reshape(-1, HEADS, WIDTH)
        k = (x @ w["k"].T).reshape(-1, KV_HEADS, WIDTH)
        out = np.empty_like(q)
        for i in range(len(tokens)):
            own = slice(max(0, i - WINDOW + 1) if mixed and layer == 1 else 0, i + 1)
            for head in range(HEADS):
                kv = head // (HEADS // KV_HEADS)
                out[i, head] = softmax(turned(k)[own, kv] @ turned(q)[i, head] * 0.5) @ k[own, kv]
                if len(frames):
                    out[i, head] += softmax(heard_k[:, kv] @ q[i, head] * 0.5) @ heard_v[:, kv]
        x = x + out.reshape(-1, HEADS * WIDTH) @ w["out"].T
    for i in range(1, len(x)) if mixed else ():
        x[i] += x[i - 1] * w["decay"]
    return np.asarray(x @ w["table"].T)

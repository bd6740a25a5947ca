"""A toy whose cached blocks depend on what the request brought: each layer attends to its own tokens and to what was heard.

Keys of the second layer are made of rows that have heard, so blocks shared among other inputs give other answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ferrum.graphs.interpret import Array
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
_OWN = f"f32[{KV_HEADS}, {WIDTH}] paged"
_HEARD = f"f32[{KV_HEADS}, {WIDTH}] fixed({FRAMES})"


def _layer(i: int) -> str:
    heads, kv = f"f32[tokens, {HEADS}, {WIDTH}]", f"f32[tokens, {KV_HEADS}, {WIDTH}]"
    return f"""q0.{i}: f32[tokens, 16] = linear(x.{i}, q) {LINEAR}
k0.{i}: f32[tokens, {KV_HEADS * WIDTH}] = linear(x.{i}, k) {LINEAR}
q1.{i}: {heads} = reshape(q0.{i})
k1.{i}: {kv} = reshape(k0.{i})
q2.{i}: {heads} = rope(q1.{i}, positions, freq) {ROPE.format(0)}
k2.{i}: {kv} = rope(k1.{i}, positions, freq) {ROPE.format(0)}
keys.{i}.1: paged[{KV_HEADS}, {WIDTH}] = write(keys.{i}, k2.{i})
values.{i}.1: paged[{KV_HEADS}, {WIDTH}] = write(values.{i}, k1.{i})
a.{i}: {heads} = attend(q2.{i}, keys.{i}.1, values.{i}.1) {ATTEND.format("true", 0)}
b.{i}: {heads} = attend(q1.{i}, heard.keys, heard.values) {ATTEND.format("false", 0)}
c.{i}: {heads} = add(a.{i}, b.{i})
joined.{i}: f32[tokens, 16] = reshape(c.{i})
y.{i}: f32[tokens, {HIDDEN}] = linear(joined.{i}, out) {LINEAR}
x.{i + 1}: f32[tokens, {HIDDEN}] = add(x.{i}, y.{i})
"""


LISTENER = verify(
    parse_graph(
        f"""graph listener
input tokens: i32[tokens]
input positions: i32[tokens]
input sample_rows: i32[samples]
{"".join(f"state keys.{i}: {_OWN}" + chr(10) + f"state values.{i}: {_OWN}" + chr(10) for i in LAYERS)}state heard.keys: {_HEARD}
state heard.values: {_HEARD}
param table: f32[{VOCAB}, {HIDDEN}] from(table)
param freq: f32[2] data{FREQUENCIES}
param q: f32[16, {HIDDEN}] from(q)
param k: f32[{KV_HEADS * WIDTH}, {HIDDEN}] from(k)
param out: f32[{HIDDEN}, 16] from(out)
x.0: f32[tokens, {HIDDEN}] = embedding(tokens, table) {{scale=1.0}}
{"".join(map(_layer, LAYERS))}rows: f32[samples, {HIDDEN}] = gather_rows(x.{len(LAYERS)}, sample_rows)
logits: f32[samples, {VOCAB}] = linear(rows, table) {LINEAR}
return logits, {", ".join(f"keys.{i}.1, values.{i}.1" for i in LAYERS)}, heard.keys, heard.values
"""
    )
)


def plain_listener(w: Mapping[str, Array], tokens: Sequence[int], frames: Array) -> Array:
    """The logits of all tokens of one sequence that hears ``frames`` [rows, HIDDEN], which may have no rows."""
    x = w["table"][list(tokens)]
    heard_k = (frames @ w["encoder.k"].T).reshape(-1, KV_HEADS, WIDTH)
    heard_v = (frames @ w["encoder.v"].T).reshape(-1, KV_HEADS, WIDTH)
    for _ in LAYERS:
        q = (x @ w["q"].T).reshape(-1, HEADS, WIDTH)
        k = (x @ w["k"].T).reshape(-1, KV_HEADS, WIDTH)
        out = np.empty_like(q)
        for i in range(len(tokens)):
            for head in range(HEADS):
                kv = head // (HEADS // KV_HEADS)
                out[i, head] = softmax(turned(k)[: i + 1, kv] @ turned(q)[i, head] * 0.5) @ k[: i + 1, kv]
                if len(frames):
                    out[i, head] += softmax(heard_k[:, kv] @ q[i, head] * 0.5) @ heard_v[:, kv]
        x = x + out.reshape(-1, HEADS * WIDTH) @ w["out"].T
    return np.asarray(x @ w["table"].T)

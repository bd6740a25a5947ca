"""Toy models as graphs, with the same mathematics written down plainly: one for each kind of state.

``decoder`` is stateless, for ``page_attention``; ``CONVOLUTION`` and ``CROSS`` are graphs of a step as they are, since no family
has such layers yet. Their plain forms see all tokens of one sequence at once and know nothing of states.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ferrum.graphs.interpret import Array, ArrayWeights, run_step
from ferrum.graphs.ir import Graph
from ferrum.graphs.step_states import StepStates
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import verify

VOCAB, HIDDEN, HEADS, KV_HEADS, WIDTH = 23, 8, 4, 2, 4
LINEAR = '{activation="", has_bias=false, has_residual=false}'
ROPE = "{{rope_dim=4, rope_scale=1.0, rows=(), seq_axis={}}}"
ATTEND = "{{causal={}, operands=(), scale=0.5, softcap=0.0, window={}}}"
FREQUENCIES = (1.0, 0.125)
CONV, FRAMES = 4, 5  # taps of the convolution; most rows of an encoder's output


def decoder(windows: Sequence[int], kv_heads: Sequence[int] = ()) -> Graph:
    """A stateless decoder of one attention layer for each window (0: none), on [batch, seq]; kv heads: 2 unless given."""
    columns = [16 + 8 * n for n in kv_heads or [KV_HEADS] * len(windows)]
    lines = [
        "graph decoder",
        "input tokens: i64[batch, seq]",
        f"param table: f32[{VOCAB}, {HIDDEN}] from(table)",
        f"param norm: f32[{HIDDEN}] from(norm)",
        f"param freq: f32[2] data{FREQUENCIES}",
        *(f"param qkv.{i}: f32[{columns[i]}, {HIDDEN}] from(qkv.{i})" for i in range(len(windows))),
        *(f"param out.{i}: f32[{HIDDEN}, 16] from(out.{i})" for i in range(len(windows))),
        f"x: f32[batch, seq, {HIDDEN}] = embedding(tokens, table) {{scale=1.0}}",
        "at: i64[seq] = iota() {start=0, step=1}",
    ]
    x = "x"
    for i, window in enumerate(windows):
        width, end = columns[i], (columns[i] + 16) // 2
        lines += [
            f"n.{i}: f32[batch, seq, {HIDDEN}] = rms_norm({x}, norm) {{eps=1e-06}}",
            f"c.{i}: f32[batch, seq, {width}] = linear(n.{i}, qkv.{i}) {LINEAR}",
            *(
                f"{name}0.{i}: f32[batch, seq, {to - start}] = slice(c.{i}) {{axis=2, end={to}, start={start}}}\n"
                f"{name}1.{i}: f32[batch, seq, {(to - start) // 4}, 4] = reshape({name}0.{i})"
                for name, start, to in (("q", 0, 16), ("k", 16, end), ("v", end, width))
            ),
            f"q.{i}: f32[batch, seq, 4, 4] = rope(q1.{i}, at, freq) {ROPE.format(1)}",
            f"k.{i}: f32[batch, seq, {(end - 16) // 4}, 4] = rope(k1.{i}, at, freq) {ROPE.format(1)}",
            f"a.{i}: f32[batch, seq, 4, 4] = attend(q.{i}, k.{i}, v1.{i}) {ATTEND.format('true', window)}",
            f"j.{i}: f32[batch, seq, 16] = reshape(a.{i})",
            f"o.{i}: f32[batch, seq, {HIDDEN}] = linear(j.{i}, out.{i}) {LINEAR}",
            f"x.{i}: f32[batch, seq, {HIDDEN}] = add({x}, o.{i})",
        ]
        x = f"x.{i}"
    lines += [f"last: f32[batch, seq, {HIDDEN}] = rms_norm({x}, norm) {{eps=1e-06}}"]
    lines += [f"logits: f32[batch, seq, {VOCAB}] = linear(last, table) {LINEAR}", "return logits"]
    return verify(parse_graph("\n".join(lines) + "\n"))


# A convolution over the last tokens, a decaying sum over all of them, and attention: two slots beside paged rows.
CONVOLUTION = verify(
    parse_graph(
        f"""graph convolution
input tokens: i32[tokens]
input positions: i32[tokens]
state past: f32[{CONV - 1}, {HIDDEN}] slot
state sum: f32[{HIDDEN}] slot
state keys: f32[1, {HIDDEN}] paged
param table: f32[{VOCAB}, {HIDDEN}] from(table)
param taps: f32[{HIDDEN}, {CONV}] from(taps)
param decay: f32[{HIDDEN}] from(decay)
x: f32[tokens, {HIDDEN}] = embedding(tokens, table) {{scale=1.0}}
before: f32[seqs, {CONV - 1}, {HIDDEN}] = read(past)
y: f32[tokens, {HIDDEN}], after: f32[seqs, {CONV - 1}, {HIDDEN}] = short_conv(x, before, taps)
past.1: slot[{CONV - 1}, {HIDDEN}] = write(past, after)
gate: f32[tokens, {HIDDEN}] = map(x, y)
  region
    input u: f32[]
    input w: f32[]
    s: f32[] = sigmoid(w)
    out: f32[] = mul(u, s)
    return out
held: f32[seqs, {HIDDEN}] = read(sum)
end: f32[seqs, {HIDDEN}], z: f32[tokens, {HIDDEN}] = scan(held, gate, decay) {{carried=1, ragged=true, scanned=1}}
  region
    input h: f32[{HIDDEN}]
    input row: f32[{HIDDEN}]
    input d: f32[{HIDDEN}]
    kept: f32[{HIDDEN}] = mul(h, d)
    next: f32[{HIDDEN}] = add(kept, row)
    return next, next
sum.1: slot[{HIDDEN}] = write(sum, end)
q: f32[tokens, 2, {HIDDEN // 2}] = reshape(z)
k: f32[tokens, 1, {HIDDEN}] = reshape(gate)
keys.1: paged[1, {HIDDEN}] = write(keys, k)
part: paged[1, {HIDDEN // 2}] = view(keys.1) {{axis=1, end={HIDDEN // 2}, start=0}}
values: paged[1, {HIDDEN // 2}] = view(keys.1) {{axis=1, end={HIDDEN}, start={HIDDEN // 2}}}
a: f32[tokens, 2, {HIDDEN // 2}] = attend(q, part, values) {ATTEND.format("true", 0)}
joined: f32[tokens, {HIDDEN}] = reshape(a)
sums: f32[tokens, {HIDDEN}] = add(joined, z)
logits: f32[tokens, {VOCAB}] = linear(sums, table) {LINEAR}
return logits, past.1, sum.1, keys.1
"""
    )
)

# An encoder that fills a fixed state, and a decoder that attends to its own tokens and to that state.
ENCODE = verify(
    parse_graph(
        f"""graph encode
input frames: f32[frames, {HIDDEN}]
state own.keys: f32[{KV_HEADS}, {WIDTH}] paged
state own.values: f32[{KV_HEADS}, {WIDTH}] paged
state heard.keys: f32[{KV_HEADS}, {WIDTH}] fixed({FRAMES})
state heard.values: f32[{KV_HEADS}, {WIDTH}] fixed({FRAMES})
param encoder.k: f32[{KV_HEADS * WIDTH}, {HIDDEN}] from(encoder.k)
param encoder.v: f32[{KV_HEADS * WIDTH}, {HIDDEN}] from(encoder.v)
k0: f32[frames, {KV_HEADS * WIDTH}] = linear(frames, encoder.k) {LINEAR}
v0: f32[frames, {KV_HEADS * WIDTH}] = linear(frames, encoder.v) {LINEAR}
k: f32[frames, {KV_HEADS}, {WIDTH}] = reshape(k0)
v: f32[frames, {KV_HEADS}, {WIDTH}] = reshape(v0)
heard.keys.1: fixed[{KV_HEADS}, {WIDTH}] = write(heard.keys, k)
heard.values.1: fixed[{KV_HEADS}, {WIDTH}] = write(heard.values, v)
return own.keys, own.values, heard.keys.1, heard.values.1
"""
    )
)
CROSS = verify(
    parse_graph(
        f"""graph cross
input tokens: i32[tokens]
input positions: i32[tokens]
state own.keys: f32[{KV_HEADS}, {WIDTH}] paged
state own.values: f32[{KV_HEADS}, {WIDTH}] paged
state heard.keys: f32[{KV_HEADS}, {WIDTH}] fixed({FRAMES})
state heard.values: f32[{KV_HEADS}, {WIDTH}] fixed({FRAMES})
param table: f32[{VOCAB}, {HIDDEN}] from(table)
param freq: f32[2] data{FREQUENCIES}
param q: f32[16, {HIDDEN}] from(q)
param k: f32[{KV_HEADS * WIDTH}, {HIDDEN}] from(k)
param out: f32[{HIDDEN}, 16] from(out)
x: f32[tokens, {HIDDEN}] = embedding(tokens, table) {{scale=1.0}}
q0: f32[tokens, 16] = linear(x, q) {LINEAR}
k0: f32[tokens, {KV_HEADS * WIDTH}] = linear(x, k) {LINEAR}
q1: f32[tokens, {HEADS}, {WIDTH}] = reshape(q0)
k1: f32[tokens, {KV_HEADS}, {WIDTH}] = reshape(k0)
q2: f32[tokens, {HEADS}, {WIDTH}] = rope(q1, positions, freq) {ROPE.format(0)}
k2: f32[tokens, {KV_HEADS}, {WIDTH}] = rope(k1, positions, freq) {ROPE.format(0)}
own.keys.1: paged[{KV_HEADS}, {WIDTH}] = write(own.keys, k2)
own.values.1: paged[{KV_HEADS}, {WIDTH}] = write(own.values, k1)
a: f32[tokens, {HEADS}, {WIDTH}] = attend(q2, own.keys.1, own.values.1) {ATTEND.format("true", 0)}
b: f32[tokens, {HEADS}, {WIDTH}] = attend(q1, heard.keys, heard.values) {ATTEND.format("false", 0)}
c: f32[tokens, {HEADS}, {WIDTH}] = add(a, b)
joined: f32[tokens, 16] = reshape(c)
y: f32[tokens, {HIDDEN}] = linear(joined, out) {LINEAR}
z: f32[tokens, {HIDDEN}] = add(x, y)
logits: f32[tokens, {VOCAB}] = linear(z, table) {LINEAR}
return logits, own.keys.1, own.values.1, heard.keys, heard.values
"""
    )
)


def arrays_of(*graphs: Graph) -> dict[str, Array]:
    """Random weights by name, the same for the same name."""
    arrays = {}
    for param in (p for graph in graphs for p in graph.params if p.data is None):
        random = np.random.default_rng(zlib.crc32(param.name.encode()))
        arrays[param.name] = random.standard_normal([int(dim) for dim in param.value.shape]) * 0.5
    return arrays


def advance(
    graph: Graph, weights: ArrayWeights, states: StepStates, parts: Mapping[int, Sequence[int]], each_row: bool = False
) -> dict[int, Array]:
    """One step that adds ``parts`` to the sequences; the logits of every new token, by sequence."""
    seqs = list(parts)
    starts = np.concatenate([[0], np.cumsum([len(parts[seq]) for seq in seqs])]).tolist()
    positions = [states.tokens[seq] + i for seq in seqs for i in range(len(parts[seq]))]
    inputs = {
        "tokens": np.array([token for seq in seqs for token in parts[seq]], np.int32),
        "positions": np.array(positions, np.int32),
    }
    out = run_step(graph, inputs, weights, states, seqs, {"tokens": starts}, np.float64, each_row)
    return {seq: out[graph.outputs[0]][a:b] for seq, a, b in zip(seqs, starts[:-1], starts[1:], strict=True)}


def encode(weights: ArrayWeights, states: StepStates, frames: Mapping[int, Array]) -> None:
    """Fill the fixed states of sequences that have begun."""
    starts = np.concatenate([[0], np.cumsum([len(rows) for rows in frames.values()])]).tolist()
    inputs = {"frames": np.concatenate(list(frames.values()))}
    run_step(ENCODE, inputs, weights, states, list(frames), {"frames": starts}, np.float64)


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def plain_convolution(w: Mapping[str, Array], tokens: Sequence[int]) -> Array:
    """The logits of all tokens of one sequence."""
    x = w["table"][list(tokens)]
    padded = np.concatenate([np.zeros((CONV - 1, HIDDEN)), x])
    y = np.stack([np.convolve(padded[:, c], w["taps"][c, ::-1], "valid") for c in range(HIDDEN)], 1)
    gate = x / (1 + np.exp(-y))
    z, held = np.empty_like(gate), np.zeros(HIDDEN)
    for i, row in enumerate(gate):
        held = held * w["decay"] + row
        z[i] = held
    out = np.empty_like(z)
    half = HIDDEN // 2
    for i in range(len(tokens)):
        for head in range(2):
            columns = slice(head * half, (head + 1) * half)
            share = softmax(gate[: i + 1, :half] @ z[i, columns] * 0.5)
            out[i, columns] = share @ gate[: i + 1, half:]
    return np.asarray((out + z) @ w["table"].T)


def turned(x: Array) -> Array:
    """[tokens, heads, WIDTH] rotated by the place of each token."""
    angle = np.arange(len(x))[:, None, None] * np.array(FREQUENCIES)
    pairs = (x[..., :2] + 1j * x[..., 2:]) * np.exp(1j * angle)
    return np.concatenate([pairs.real, pairs.imag], -1)


def plain_cross(w: Mapping[str, Array], tokens: Sequence[int], frames: Array) -> Array:
    """The logits of all tokens of one sequence that hears ``frames``."""
    x = w["table"][list(tokens)]
    q = (x @ w["q"].T).reshape(-1, HEADS, WIDTH)
    k = (x @ w["k"].T).reshape(-1, KV_HEADS, WIDTH)
    heard_k = (frames @ w["encoder.k"].T).reshape(-1, KV_HEADS, WIDTH)
    heard_v = (frames @ w["encoder.v"].T).reshape(-1, KV_HEADS, WIDTH)
    out = np.empty_like(q)
    for i in range(len(tokens)):
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            own = softmax(turned(k)[: i + 1, kv] @ turned(q)[i, head] * 0.5) @ k[: i + 1, kv]
            out[i, head] = own + softmax(heard_k[:, kv] @ q[i, head] * 0.5) @ heard_v[:, kv]
    return np.asarray((x + out.reshape(-1, HEADS * WIDTH) @ w["out"].T) @ w["table"].T)

"""Attention and rotation in numpy: what ``rope``, ``sdpa``, ``attend`` and the fused ``paged_attention`` mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_run import Array, Run, normalize
from ferrum.graphs.numpy_state import Version
from ferrum.graphs.op_spec import axes, integer, number, words


def rotate(x: Array, positions: Array, inv_freq: Array, seq_axis: int, rope_dim: int, scale: float) -> Array:
    """Rotary embedding of the first ``rope_dim`` columns, halves paired (x[i], x[i + rope_dim / 2]); positions of one row."""
    return turn(x, angles(x, positions.astype(x.dtype)[..., None] * inv_freq.astype(x.dtype), seq_axis), rope_dim, scale)


def angles(x: Array, table: Array, seq_axis: int) -> Array:
    """``table`` [.., positions, frequencies] with axes of length 1 where x has others."""
    return table.reshape(table.shape[:-1] + (1,) * (x.ndim - 2 - seq_axis) + table.shape[-1:])


def turn(x: Array, angle: Array, rope_dim: int, scale: float) -> Array:
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    half = rope_dim // 2
    a, b, rest = x[..., :half], x[..., half:rope_dim], x[..., rope_dim:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def rope(run: Run, node: Node) -> Array:
    x, positions, inv_freq = run.all(node)
    rows = axes(node.attrs, "rows")
    at = np.moveaxis(positions[list(rows)], 0, -1) if rows else positions[..., None]
    table = at.astype(x.dtype) * inv_freq.astype(x.dtype)
    seq_axis, rope_dim = integer(node.attrs, "seq_axis"), integer(node.attrs, "rope_dim")
    return turn(x, angles(x, table, seq_axis), rope_dim, number(node.attrs, "rope_scale"))


@dataclass(frozen=True)
class Rules:
    """How scores become weights. ``sinks`` [heads] take a share of each sum and give nothing; ``slopes`` [heads] are taken from
    the score for each place between a key and its query."""

    scale: float
    causal: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: Array | None = None
    slopes: Array | None = None

    def distances(self, query: Array, key: Array) -> Array | None:
        """What slopes add, [heads, queries, keys], by their places."""
        return None if self.slopes is None else self.slopes[:, None, None] * (key[None, :] - query[:, None])


def scores_of(q: Array, k: Array, rules: Rules) -> Array:
    scores = (q @ np.swapaxes(k, -1, -2)) * rules.scale
    return np.tanh(scores / rules.softcap) * rules.softcap if rules.softcap else scores


def weights_of(scores: Array, sinks: Array | None) -> Array:
    """The softmax over the last axis; zeros where a query sees nothing."""
    highest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        highest = np.maximum(highest, sinks[:, None, None])
    highest = np.where(np.isfinite(highest), highest, 0)
    e = np.exp(scores - highest)
    total = e.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - highest)
    return np.asarray(e / np.where(total == 0, 1, total))


def attention(q: Array, k: Array, v: Array, allowed: Array | None, bias: Array | None, rules: Rules) -> Array:
    """On ``[..., heads, queries, width]``; kv heads are shared by equal groups of heads."""
    times = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, times, axis=-3), np.repeat(v, times, axis=-3)
    scores = scores_of(q, k, rules)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    return np.asarray(weights_of(scores, rules.sinks).astype(q.dtype) @ v)


def visible(query: Array, key: Array, causal: bool, window: int) -> Array:
    """Which key a query sees, by their places: none ahead if causal, and with a window only those less than it away."""
    distance = query[:, None] - key[None, :]
    near = (np.abs(distance) < window) | (window == 0)
    return (distance >= 0) & near if causal else near


def sdpa(run: Run, node: Node) -> Array:
    q, k, v, *masks = run.all(node)
    mask = masks[0] if masks else None
    at = np.arange(q.shape[-2])
    binary = mask is not None and mask.dtype == np.bool_
    allowed = visible(at, at, True, 0) if node.attrs["is_causal"] else mask if binary else None
    return attention(q, k, v, allowed, None if binary else mask, Rules(number(node.attrs, "scale")))


def attend(run: Run, node: Node) -> Array:
    a = node.attrs
    q = run.get(node.inputs[0])
    extra = dict(zip(words(a, "operands"), map(run.get, node.inputs[3:]), strict=True))
    per_head = (extra.get("sinks"), extra.get("slopes"))
    rules = Rules(number(a, "scale"), bool(a["causal"]), integer(a, "window"), number(a, "softcap"), *per_head)
    if q.ndim == 4:
        return dense(q, run.get(node.inputs[1]), run.get(node.inputs[2]), rules, extra)
    values = run.env[node.inputs[2]]
    width = (values.shape if isinstance(values, Version) else run.get(node.inputs[2]).shape)[-1]
    out = np.zeros((*q.shape[:-1], width), q.dtype)
    spans = list(run.sequences.spans(run.types[node.inputs[0]].shape[0]))
    for (start, end), (first, k, v) in zip(spans, rows(run, node), strict=True):
        own = extra["segments"][start:end] if "segments" in extra else None
        out[start:end] = ragged(q[start:end], first, k, v, rules, own, run.each_row)
    return out


def rows(run: Run, node: Node) -> Iterator[tuple[int, Array, Array]]:
    """For each sequence: the place of its first key, its keys and values [length, kv heads, width]."""
    k, v = (run.env[name] for name in node.inputs[1:3])
    if isinstance(k, Version):
        for seq in run.sequences.ids:
            first, keys = k.read(seq)
            yield first, keys, v.read(seq)[1]
        return
    for start, end in run.sequences.spans(run.types[node.inputs[1]].shape[0]):
        yield 0, k[start:end], v[start:end]


def ragged(q: Array, first: int, k: Array, v: Array, rules: Rules, segments: Array | None, each_row: bool) -> Array:
    """One sequence: queries [n, heads, width] are its newest tokens, the last of which is the last key when causal."""
    key = first + np.arange(len(k))
    query = first + len(k) - len(q) + np.arange(len(q))
    allowed = visible(query, key, rules.causal, rules.window)
    if segments is not None:
        allowed = allowed & (segments[:, None] == segments[None, :])
    if not each_row:
        q, k, v = (np.swapaxes(x, 0, 1) for x in (q, k, v))
        return attention(q, k, v, allowed, rules.distances(query, key), rules).swapaxes(0, 1)
    out = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    for i, row in enumerate(allowed):
        keys, values = (np.swapaxes(x[row], 0, 1) for x in (k, v))
        bias = rules.distances(query[i : i + 1], key[row])
        out[i] = attention(q[i][:, None], keys, values, None, bias, rules)[:, 0]
    return out


def dense(q: Array, k: Array, v: Array, rules: Rules, extra: dict[str, Array]) -> Array:
    """[batch, seq, heads, width]; when causal the last query is at the last key."""
    queries, keys = q.shape[1], k.shape[1]
    at = (np.arange(queries) + keys - queries, np.arange(keys))
    allowed, bias, distances = visible(*at, rules.causal, rules.window), extra.get("bias"), rules.distances(*at)
    if distances is not None:
        bias = distances if bias is None else bias + distances
    if "segments" in extra:
        own = extra["segments"]
        allowed = allowed & (own[:, None, :, None] == own[:, None, None, :])
    if "length" in extra:
        allowed = allowed & (np.arange(keys) < extra["length"][:, None, None, None])
    q, k, v = (np.swapaxes(x, 1, 2) for x in (q, k, v))
    return np.swapaxes(attention(q, k, v, allowed, bias, rules), 1, 2)


def paged_attend(run: Run, node: Node) -> Array:
    """As ``paged_attention``, of queries, keys and values that were made before."""
    q, k, v, *extra = run.all(node)
    a = node.attrs
    given = dict(zip(words(a, "operands"), extra, strict=True))
    rules = Rules(number(a, "scale"), True, integer(a, "window"), number(a, "softcap"), given.get("sinks"), given.get("slopes"))
    out = np.empty((*q.shape[:2], v.shape[2]), q.dtype)
    for seq, (start, end) in enumerate(run.sequences.spans("tokens")):
        keys, values = run.kv.extend(integer(a, "layer"), seq, k[start:end], v[start:end])
        out[start:end] = ragged(q[start:end], 0, keys, values, rules, None, run.each_row)
    return out


def paged_attention(run: Run, node: Node) -> Array:
    """Ragged attention: each sequence's new tokens are rotated, stored and attend to all of the sequence's tokens."""
    hq, hkv, d, layer = (integer(node.attrs, key) for key in ("num_heads", "num_kv_heads", "head_dim", "layer"))
    qkv = run.get(node.inputs[0]).reshape(-1, hq + 2 * hkv, d)
    q, k, v = qkv[:, :hq], qkv[:, hq : hq + hkv], qkv[:, hq + hkv :]
    if node.attrs["qk_norm"]:
        q = normalize(q, run.get(node.inputs[2]), number(node.attrs, "eps"))
        k = normalize(k, run.get(node.inputs[3]), number(node.attrs, "eps"))
    positions, inv_freq = run.env["positions"], run.get(node.inputs[1])
    rope_dim, rope_scale = integer(node.attrs, "rope_dim"), number(node.attrs, "rope_scale")
    q, k = (rotate(x, positions, inv_freq, 0, rope_dim, rope_scale) for x in (q, k))
    out = np.empty_like(q)
    rules = Rules(number(node.attrs, "scale"), True, integer(node.attrs, "window"))
    for seq, (start, end) in enumerate(run.sequences.spans("tokens")):
        keys, values = run.kv.extend(layer, seq, k[start:end], v[start:end])
        out[start:end] = ragged(q[start:end], 0, keys, values, rules, None, run.each_row)
    return out.reshape(-1, hq * d)

"""Shapes of attention and of what belongs to it: rotation, the imported form, the general form, the fused form of machines."""

from __future__ import annotations

from ferrum.graphs.ir import STATE_KINDS, Shape, Value
from ferrum.graphs.op_spec import Attrs, Inputs, Typed, axes, axis_of, broadcast, integer, need, number, show, words

# Optional operands of ``attend``, in the order in which they follow q, k and v.
OPERANDS = ("sinks", "segments", "bias", "length", "slopes")
PAGED_OPERANDS = ("sinks", "slopes")  # those of a head, which pages of keys change nothing about


def rope(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """x, positions, frequencies: positions [.., P] lie along the axes of x that end at ``seq_axis``.

    With ``rows``, one number for each frequency, positions have an axis more in front, and frequency i turns by row rows[i].
    """
    value, positions, freq = x
    axis, width, rows = axis_of(a, value.shape, "seq_axis"), integer(a, "rope_dim"), axes(a, "rows")
    last = value.shape[-1]
    need(value.dtype == "f32", f"needs a float input, not {value.dtype}")
    need(axis < len(value.shape) - 1, "positions run along an axis before the last")
    need(isinstance(last, int) and 0 < width <= last and width % 2 == 0, f"rope_dim {width} against rows of {last}")
    need(freq.shape == (width // 2,), f"inv_freq {show(freq.shape)} against rope_dim {width}")
    need(positions.dtype in ("i32", "i64"), f"positions must be integers, not {positions.dtype}")
    along = positions.shape[bool(rows) :]
    need(len(along) >= 1 and along == value.shape[max(0, axis + 1 - len(along)) : axis + 1], f"positions {show(positions.shape)}")
    if rows:
        count = positions.shape[0]
        need(len(rows) == width // 2 and isinstance(count, int), f"{len(rows)} rows for {width // 2} frequencies")
        need(isinstance(count, int) and min(rows) >= 0 and max(rows) < count, f"rows outside of {show(positions.shape)}")
    return value.dtype, value.shape


def shared_heads(h: object, g: object) -> None:
    need(isinstance(h, int) and isinstance(g, int) and h % g == 0, f"{h} heads over {g} kv heads")


def sdpa(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    q, k, v = (value.shape for value in x[:3])
    need(len(q) == len(k) == 4 and k == v, f"q {show(q)}, k {show(k)}, v {show(v)}")
    need(q[0] == k[0] and q[3] == k[3], f"q {show(q)} against k {show(k)}")
    shared_heads(q[1], k[1])
    if len(x) == 4:
        need(not a["is_causal"], "a mask and is_causal exclude each other")
        need(x[3].dtype in ("bool", "f32"), f"mask of {x[3].dtype}")
        scores = (*q[:3], k[2])
        need(broadcast(x[3].shape, scores) == scores, f"mask {show(x[3].shape)} against scores {show(scores)}")
    return x[0].dtype, q


def rows_of(value: Value) -> tuple[Shape, Shape]:
    """(axes of the rows, [heads, width]); the rows of a state have no axis in the graph."""
    return ((), value.shape) if value.dtype in STATE_KINDS else (value.shape[:-2], value.shape[-2:])


def attend(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """q [.., heads, width] against k and v: [batch, seq, ..], ragged rows [tokens, ..], or states read by ragged rows."""
    (at, (heads, width)), (k_at, k), (v_at, v) = head_shapes(x)
    need("slot" not in (x[1].dtype, x[2].dtype), "a slot holds no rows")
    need(len(k) == len(v) == 2 and k_at == v_at and k[0] == v[0], f"k {show(x[1].shape)} against v {show(x[2].shape)}")
    need((x[1].dtype in STATE_KINDS) == (x[2].dtype in STATE_KINDS), "k and v are both states or both values")
    need(k[1] == width, f"q {show(x[0].shape)} against k {show(x[1].shape)}")
    shared_heads(heads, k[0])
    dense = len(at) == 2
    need(len(k_at) == len(at) if k_at else not dense, f"q {show(x[0].shape)} against k {show(x[1].shape)}")
    need(not dense or at[0] == k_at[0], f"q {show(x[0].shape)} against k {show(x[1].shape)}")
    need(integer(a, "window") >= 0, "window must be 0 (none) or positive")
    need(number(a, "softcap") >= 0, "softcap must be 0 (none) or positive")
    need(not (a["causal"] and "fixed" in (x[1].dtype, x[2].dtype)), "a fixed state has no order with the queries")
    operands(x[3:], a, at, k_at, heads)
    return x[0].dtype, (*at, heads, v[1])


def head_shapes(x: Inputs) -> list[tuple[Shape, Shape]]:
    need(
        x[0].dtype == "f32" and len(x[0].shape) in (3, 4), f"q is [tokens, heads, width] or [batch, seq, ..]: {show(x[0].shape)}"
    )
    need(all(len(v.shape) >= 2 for v in x[1:3]), "k and v end in [heads, width]")
    return [rows_of(value) for value in x[:3]]


def operands(x: Inputs, a: Attrs, at: Shape, k_at: Shape, heads: object) -> None:
    """Checks the operands that ``operands`` names: sinks [heads]; segments as the rows of q and k, which are then the same;
    bias, added to the scores [batch, heads, seq, keys]; length [batch], keys that count; slopes [heads], taken from the score
    for each place that a key lies before its query."""
    names = words(a, "operands")
    need(names == tuple(n for n in OPERANDS if n in names), f"operands are some of {', '.join(OPERANDS)}, in this order")
    need(len(x) == len(names), f"{len(x)} optional inputs do not fit operands {list(names)}")
    scores = (*at[:1], heads, *at[1:], *k_at[1:])
    for name, value in zip(names, x, strict=True):
        match name:
            case "sinks" | "slopes":
                need(value.shape == (heads,) and value.dtype == "f32", f"{name} {show(value.shape)} against {heads} heads")
            case "segments":
                fits = at == k_at == value.shape and value.dtype in ("i32", "i64")
                need(fits, f"segments {show(value.shape)} of rows {show(at)}")
            case "bias":
                fits = len(at) == 2 and value.dtype == "f32" and broadcast(value.shape, scores) == scores  # type: ignore[arg-type]
                need(fits, f"bias {show(value.shape)} against scores {show(scores)}")  # type: ignore[arg-type]
            case _:
                fits = len(at) == 2 and value.shape == at[:1] and value.dtype in ("i32", "i64")
                need(fits, f"length {show(value.shape)} against keys {show(k_at)}")


def paged_attend(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    """Causal: q [tokens, heads, width] against all rows of its sequence, whose newest are k and v."""
    q, k, v = (value.shape for value in x[:3])
    need(len(q) == len(k) == len(v) == 3 and q[0] == k[0] == v[0], f"q {show(q)}, k {show(k)}, v {show(v)}")
    need(q[2] == k[2] and k[1] == v[1], f"q {show(q)}, k {show(k)}, v {show(v)}")
    shared_heads(q[1], k[1])
    need({value.dtype for value in x} == {"f32"}, "needs float inputs")
    need(integer(a, "layer") >= 0 and integer(a, "window") >= 0, "layer and window must not be negative")
    need(number(a, "softcap") >= 0, "softcap must be 0 (none) or positive")
    names = words(a, "operands")
    need(
        names == tuple(n for n in PAGED_OPERANDS if n in names),
        f"operands are some of {', '.join(PAGED_OPERANDS)}, in this order",
    )
    need(len(x) == 3 + len(names), f"{len(x)} inputs do not fit operands {list(names)}")
    need(all(value.shape == (q[1],) for value in x[3:]), f"{', '.join(names)}: one for each head")
    need(len(words(a, "states")) == 2, "a state of keys and one of values")
    return "f32", (*q[:2], v[2])


def paged_attention(x: Inputs, a: Attrs, _: Value | None) -> Typed:
    hq, hkv, d = integer(a, "num_heads"), integer(a, "num_kv_heads"), integer(a, "head_dim")
    rope_dim = integer(a, "rope_dim")
    need(hq > 0 and hkv > 0 and d > 0 and hq % hkv == 0, f"{hq} heads of {d} over {hkv} kv heads")
    width = (hq + 2 * hkv) * d
    need(len(x[0].shape) == 2 and x[0].shape[1] == width, f"qkv {show(x[0].shape)} against {width} columns")
    need(0 <= rope_dim <= d and rope_dim % 2 == 0, f"rope_dim {rope_dim} against head_dim {d}")
    need(x[1].shape == (rope_dim // 2,), f"inv_freq {show(x[1].shape)} against rope_dim {rope_dim}")
    need(integer(a, "layer") >= 0 and integer(a, "window") >= 0, "layer and window must not be negative")
    need(len(x) == (4 if a["qk_norm"] else 2), f"{len(x)} inputs do not fit qk_norm")
    need(all(v.shape == (d,) for v in x[2:]), f"q and k norm weights must have {d} elements")
    need(len(words(a, "states")) == 2, "a state of keys and one of values")
    return x[0].dtype, (x[0].shape[0], hq * d)

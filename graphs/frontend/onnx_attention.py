"""ONNX's and ONNX Runtime's ops for attention and rotation.

Source: the operators' pages of ONNX (Attention, RotaryEmbedding: opset 23) and of ONNX Runtime's contrib ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ferrum.graphs.frontend.builder import Unsupported, every, fixed
from ferrum.graphs.frontend.onnx_held import Empty, Held
from ferrum.graphs.frontend.uniform import uniform
from ferrum.graphs.onnx.file import OnnxNode

if TYPE_CHECKING:
    from ferrum.graphs.frontend.onnx import Importer

SWAP = (0, 2, 1, 3)


def heads_apart(imp: Importer, x: str, heads: int) -> str:
    """[batch, seq, heads * width] → [batch, seq, heads, width]."""
    *lead, columns = imp.type(x).shape
    size = fixed(columns, "a width")
    if heads < 1 or size % heads:
        raise Unsupported(f"{size} columns in {heads} heads")
    return imp.reshape(x, (*lead, heads, size // heads))


def heads_joined(imp: Importer, x: str) -> str:
    *lead, heads, width = imp.type(x).shape
    return imp.reshape(x, (*lead, fixed(heads, "heads") * fixed(width, "a width")))


def width_of(imp: Importer, x: str) -> int:
    return fixed(imp.type(x).shape[-1], "a head's width")


def nothing_past(imp: Importer, node: OnnxNode, *inputs: int) -> None:
    for at in inputs:
        if imp.given(node, at) and not isinstance(imp.held(node, at), Empty):
            raise Unsupported(f"{node.op} with a past that is computed", "past_key_values as inputs of the model")


# rotation


def turned(imp: Importer, x: str, cos: str, sin: str, width: int, interleaved: bool) -> str:
    """The first ``width`` columns of x turned by angles whose cosines and sines broadcast to half of them."""
    axis, columns = len(imp.type(x).shape) - 1, width_of(imp, x)
    if not 0 < width <= columns or width % 2:
        raise Unsupported(f"a rotation of {width} of {columns} columns")
    part = imp.part(x, axis, 0, width)
    if interleaved:
        a, b = (every(imp, part, axis, first, width, 2) for first in (0, 1))
    else:
        a, b = imp.part(part, axis, 0, width // 2), imp.part(part, axis, width // 2, width)
    first = imp.emit("sub", imp.emit("mul", a, cos), imp.emit("mul", b, sin))
    second = imp.emit("add", imp.emit("mul", b, cos), imp.emit("mul", a, sin))
    if interleaved:
        lead = imp.type(first).shape
        first, second = imp.reshape(first, (*lead, 1)), imp.reshape(second, (*lead, 1))
        found = imp.reshape(imp.emit("cat", first, second, axis=axis + 1), imp.type(part).shape)
    else:
        found = imp.emit("cat", first, second, axis=axis)
    return found if width == columns else imp.emit("cat", found, imp.part(x, axis, width, columns), axis=axis)


def by_place(imp: Importer, table: str, places: str, seq_axis: int) -> str:
    """Rows of a table [places, width] for places [batch, seq] (all of a sequence's: [seq]), beside heads before or after seq."""
    rows = imp.emit("take", table, places, axis=0) if places else table
    shape = imp.type(rows).shape
    lead = (1,) * (3 - len(shape)) + shape[:-1]
    return imp.reshape(rows, (lead[0], 1, lead[1], shape[-1]) if seq_axis == 2 else (*lead, 1, shape[-1]))


def rotate(imp: Importer, node: OnnxNode, places: str, tables: tuple[int, int]) -> str:
    """x [batch, heads, seq, width], or [batch, seq, columns] in ``num_heads`` heads."""
    x = imp.tensor(node, 0, "f32")
    flat = len(imp.type(x).shape) == 3
    cos, sin = (imp.tensor(node, at, "f32") for at in tables)
    width = node.integer("rotary_embedding_dim") or 2 * width_of(imp, cos)
    if flat:
        heads = node.integer("num_heads")
        if not heads:
            raise Unsupported("RotaryEmbedding of joined heads without num_heads", "num_heads")
        x = heads_apart(imp, x, heads)
    cos, sin = (by_place(imp, table, places, 1 if flat else 2) for table in (cos, sin))
    found = turned(imp, x, cos, sin, width, bool(node.integer("interleaved")))
    return heads_joined(imp, found) if flat else found


def rotary(imp: Importer, node: OnnxNode) -> str:
    """Inputs X, cosines, sines, places."""
    return rotate(imp, node, imp.tensor(node, 3) if imp.given(node, 3) else "", (1, 2))


def rotary_of_runtime(imp: Importer, node: OnnxNode) -> str:
    """Inputs X, places, cosines, sines; one place is that of the first token."""
    if node.floating("scale", 1.0) != 1.0 or node.integer("is_packed_batching"):
        raise Unsupported("RotaryEmbedding with a scale or packed batches", "neither")
    places = imp.tensor(node, 1)
    if len(imp.type(places).shape) == 1:
        if uniform(imp.scope, places) != 0:
            raise Unsupported("RotaryEmbedding from a place that is computed", "position_ids [batch, seq]")
        places = imp.emit("iota", shape=("seq",), dtype="i64", start=0, step=1)
    return rotate(imp, node, places, (2, 3))


# attention


def attention(imp: Importer, node: OnnxNode) -> tuple[Held, ...]:
    """Inputs Q, K, V, a mask, a past; [batch, heads, seq, width], or [batch, seq, columns] with the numbers of heads."""
    nothing_past(imp, node, 4, 5)
    if imp.given(node, 6) or node.integer("qk_matmul_output_mode") or any(node.outputs[3:]):
        raise Unsupported("Attention with scores as an output, or lengths", "one output")
    names = [imp.tensor(node, at, "f32") for at in range(3)]
    flat = len(imp.type(names[0]).shape) == 3
    if flat:
        counts = [node.integer(key) for key in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
        apart = [heads_apart(imp, name, heads) for name, heads in zip(names, counts, strict=True)]
        names = [imp.emit("permute", name, order=SWAP) for name in apart]
    scale = node.floating("scale", 0.0) or width_of(imp, names[0]) ** -0.5
    softcap, causal = node.floating("softcap", 0.0), bool(node.integer("is_causal"))
    mask = imp.tensor(node, 3) if imp.given(node, 3) else ""
    if mask and uniform(imp.scope, mask) == (1.0 if imp.type(mask).dtype == "bool" else 0.0):
        mask = ""
    if mask and causal:
        raise Unsupported("Attention that is causal and has a mask", "one of both")
    if softcap or imp.type(names[1]).shape != imp.type(names[2]).shape:
        made = imp.emit("permute", general(imp, names, mask, scale, softcap, causal), order=SWAP)
    else:
        made = imp.emit("sdpa", *names, *([mask] if mask else []), is_causal=causal, scale=scale)
    return (heads_joined(imp, imp.emit("permute", made, order=SWAP)) if flat else made,)


def general(imp: Importer, names: list[str], mask: str, scale: float, softcap: float, causal: bool) -> str:
    """``attend`` on [batch, seq, heads, width]; a mask as what is added to scores."""
    rows = [imp.emit("permute", name, order=SWAP) for name in names]
    extra = []
    if mask:
        allowed = imp.type(mask).dtype == "bool"
        forbidden = (imp.constant(0.0, (), "f32"), imp.constant(-3e38, (), "f32")) if allowed else ()
        extra = [imp.emit("where", mask, *forbidden) if forbidden else mask]
    operands = ("bias",) * len(extra)
    return imp.emit("attend", *rows, *extra, causal=causal, window=0, scale=scale, softcap=softcap, operands=operands)


def grouped(imp: Importer, node: OnnxNode) -> tuple[Held, ...]:
    """GroupQueryAttention: queries, keys and values [batch, seq, columns], or all in the first; causal. Lengths are those of
    whole sequences. A window counts the token itself (ONNX Runtime 1.23 and later; before, it did not)."""
    nothing_past(imp, node, 3, 4)
    if imp.given(node, 10) or node.integer("qk_output") or any(imp.given(node, at) for at in (12, 13)):
        raise Unsupported("GroupQueryAttention with a bias, scales or scores as an output", "queries, keys, values and tables")
    counts = (node.integer("num_heads"), node.integer("kv_num_heads"))
    q, k, v = three(imp, node, *counts)
    if node.integer("do_rotary"):
        places = imp.tensor(node, 9) if imp.given(node, 9) else imp.emit("iota", shape=("seq",), dtype="i64", start=0, step=1)
        cos, sin = (by_place(imp, imp.tensor(node, at, "f32"), places, 1) for at in (7, 8))
        width, interleaved = 2 * width_of(imp, cos), bool(node.integer("rotary_interleaved"))
        q, k = (turned(imp, x, cos, sin, width, interleaved) for x in (q, k))
    sinks = [imp.tensor(node, 11, "f32")] if imp.given(node, 11) else []
    if node.integer("smooth_softmax") > 0 and not sinks:
        sinks = [imp.constant(0.0, counts[:1], "f32")]
    made = imp.emit(
        "attend", q, k, v, *sinks, causal=True, window=max(0, node.integer("local_window_size", -1)),
        scale=node.floating("scale", 0.0) or width_of(imp, q) ** -0.5, softcap=node.floating("softcap", 0.0),
        operands=("sinks",) * len(sinks),
    )  # fmt: skip
    return (heads_joined(imp, made),)


def three(imp: Importer, node: OnnxNode, heads: int, shared: int) -> tuple[str, str, str]:
    """Queries, keys and values, heads apart."""
    x = imp.tensor(node, 0, "f32")
    if imp.given(node, 1):
        k, v = imp.tensor(node, 1, "f32"), imp.tensor(node, 2, "f32")
        return heads_apart(imp, x, heads), heads_apart(imp, k, shared), heads_apart(imp, v, shared)
    rows = heads_apart(imp, x, heads + 2 * shared)
    ends = (0, heads, heads + shared, heads + 2 * shared)
    q, k, v = (imp.part(rows, 2, start, end) for start, end in zip(ends, ends[1:], strict=False))
    return q, k, v

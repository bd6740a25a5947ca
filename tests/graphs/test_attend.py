"""``attend`` and ``rope`` mean what torch means, and what is written down plainly here, over drawn shapes and options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ferrum.graphs.infer_attention import OPERANDS
from ferrum.graphs.interpret import Array, ArrayWeights, interpret
from ferrum.graphs.ir import Graph, Node, Value
from ferrum.graphs.verify import faults, verify


def graph_of(node: Node, inputs: dict[str, tuple[str, tuple[Any, ...]]]) -> Graph:
    values = tuple(Value(name, dtype, shape) for name, (dtype, shape) in inputs.items())
    return verify(Graph("m", values, (), (node,), (node.output.name,)))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes, options and the seed of the values of one dense attention."""
    kv_heads, causal = draw(st.integers(1, 3)), draw(st.booleans())
    queries = draw(st.integers(1, 7))
    operands = draw(st.sets(st.sampled_from(OPERANDS)))
    own = "segments" in operands
    return {
        "batch": draw(st.integers(1, 3)),
        "heads": kv_heads * draw(st.integers(1, 3)),
        "kv_heads": kv_heads,
        "queries": queries,
        "keys": queries if own else queries + draw(st.integers(0, 5)),
        "width": draw(st.sampled_from([2, 4, 6])),
        "value_width": draw(st.sampled_from([2, 3, 8])),
        "causal": causal,
        "window": draw(st.sampled_from([0, 1, 3])),
        "softcap": draw(st.sampled_from([0.0, 1.5, 30.0])),
        "operands": tuple(name for name in OPERANDS if name in operands),
        "seed": draw(st.integers(0, 999)),
    }


def values_of(case: dict[str, Any]) -> dict[str, Array]:
    random = np.random.default_rng(case["seed"])
    b, h, g, n, m = (case[key] for key in ("batch", "heads", "kv_heads", "queries", "keys"))
    values = {
        "q": random.standard_normal((b, n, h, case["width"])),
        "k": random.standard_normal((b, m, g, case["width"])),
        "v": random.standard_normal((b, m, g, case["value_width"])),
    }
    optional = {
        "sinks": random.standard_normal(h),
        "segments": random.integers(0, 2, (b, n)),
        "bias": random.standard_normal((h, 1, m) if case["seed"] % 2 else (b, 1, n, m)),
        "length": random.integers(0, m + 1, b),
        "slopes": random.random(h),
    }
    return values | {name: optional[name] for name in case["operands"]}


def run(case: dict[str, Any], values: dict[str, Array]) -> Array:
    attrs = {key: case[key] for key in ("causal", "window", "softcap", "operands")} | {"scale": 0.5}
    out = Value("out", "f32", (*values["q"].shape[:-1], case["value_width"]))
    inputs = {name: ("i64" if x.dtype.kind == "i" else "f32", x.shape) for name, x in values.items()}
    graph = graph_of(Node("attend", tuple(values), (out,), attrs), inputs)
    return interpret(graph, values, ArrayWeights({}), np.float64)["out"]


def plainly(case: dict[str, Any], x: dict[str, Array]) -> Array:
    """One query and one head at a time, one key at a time."""
    b, n, h, _ = x["q"].shape
    m, group = x["k"].shape[1], h // case["kv_heads"]
    out = np.zeros((b, n, h, case["value_width"]))
    for s, i, head in np.ndindex(b, n, h):
        at, total, lines = i + m - n, 0.0, np.zeros(case["value_width"])
        if "sinks" in x:
            total += np.exp(x["sinks"][head])
        for j in range(m):
            ahead, far = case["causal"] and j > at, case["window"] and abs(at - j) >= case["window"]
            elsewhere = "segments" in x and x["segments"][s, i] != x["segments"][s, j]
            if ahead or far or elsewhere or ("length" in x and j >= x["length"][s]):
                continue
            score = 0.5 * float(x["q"][s, i, head] @ x["k"][s, j, head // group])
            if case["softcap"]:
                score = case["softcap"] * np.tanh(score / case["softcap"])
            if "bias" in x:
                score += float(np.broadcast_to(x["bias"], (b, h, n, m))[s, head, i, j])
            if "slopes" in x:
                score += x["slopes"][head] * (j - at)
            total += np.exp(score)
            lines += np.exp(score) * x["v"][s, j, head // group]
        out[s, i, head] = lines / total if total else 0.0
    return out


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_is_written_down_plainly(case: dict[str, Any]) -> None:
    values = values_of(case)
    np.testing.assert_allclose(run(case, values), plainly(case, values), rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_torch(case: dict[str, Any]) -> None:
    """Without what torch has no word for; its causal mask is that of as many queries as keys."""
    case |= {"softcap": 0.0, "window": 0, "operands": tuple(name for name in case["operands"] if name == "bias")}
    if case["causal"]:
        case |= {"keys": case["queries"], "operands": ()}
    values = values_of(case)
    q, k, v = (torch.from_numpy(values[name].swapaxes(1, 2)) for name in "qkv")
    bias = torch.from_numpy(np.broadcast_to(values["bias"], (*q.shape[:3], k.shape[2])).copy()) if "bias" in values else None
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=case["causal"], scale=0.5, enable_gqa=True)
    np.testing.assert_allclose(run(case, values), want.numpy().swapaxes(1, 2), rtol=1e-9, atol=1e-11)


def test_ragged_rows_see_their_own_sequence() -> None:
    """[tokens, heads, width] with segments: what each sequence gives alone as [1, seq, ..]."""
    random = np.random.default_rng(0)
    q, k = random.standard_normal((9, 2, 4)), random.standard_normal((9, 1, 4))
    v, segments = random.standard_normal((9, 1, 3)), random.integers(0, 2, 9)
    attrs = {"causal": False, "window": 0, "softcap": 0.0, "operands": ("segments",), "scale": 0.5}
    shapes = {"tokens": ("f32", ("tokens", 2, 4)), "k": ("f32", ("tokens", 1, 4)), "v": ("f32", ("tokens", 1, 3))}
    node = Node("attend", ("tokens", "k", "v", "own"), (Value("out", "f32", ("tokens", 2, 3)),), attrs)
    graph = graph_of(node, shapes | {"own": ("i64", ("tokens",))})
    values = {"tokens": q, "k": k, "v": v, "own": segments}
    got = interpret(graph, values, ArrayWeights({}), np.float64, query_start=(0, 5, 9))["out"]
    case = {"causal": False, "window": 0, "softcap": 0.0, "operands": ("segments",), "kv_heads": 1, "value_width": 3}
    for rows in (slice(0, 5), slice(5, 9)):
        alone = {"q": q[None, rows], "k": k[None, rows], "v": v[None, rows], "segments": segments[None, rows]}
        np.testing.assert_allclose(got[rows], plainly(case, alone)[0], rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, 3]), st.booleans())
def test_rope_turns_pairs_by_their_row_of_positions(seed: int, rows: int, batch: bool) -> None:
    random = np.random.default_rng(seed)
    lead = (2, 5) if batch else (5,)
    x, freq = random.standard_normal((*lead, 3, 8)), random.random(3)
    positions = random.integers(0, 99, (rows, *lead) if rows > 1 else lead)
    which = tuple(random.integers(0, rows, 3).tolist()) if rows > 1 else ()
    attrs = {"rope_dim": 6, "rope_scale": 1.25, "rows": which, "seq_axis": len(lead) - 1}
    inputs = {"x": ("f32", x.shape), "at": ("i64", positions.shape), "freq": ("f32", (3,))}
    node = Node("rope", ("x", "at", "freq"), (Value("out", "f32", x.shape),), attrs)
    got = interpret(graph_of(node, inputs), {"x": x, "at": positions, "freq": freq}, ArrayWeights({}), np.float64)["out"]
    for index in np.ndindex(*lead):
        place = np.array([positions[(row, *index)] for row in which]) if which else positions[index]
        turned = (x[index][:, :3] + 1j * x[index][:, 3:6]) * 1.25 * np.exp(1j * place * freq)
        np.testing.assert_allclose(got[index], np.concatenate([turned.real, turned.imag, x[index][:, 6:]], 1), atol=1e-12)


HEAD = {"q": ("f32", ("batch", "seq", 4, 8)), "k": ("f32", ("batch", "seq", 2, 8)), "v": ("f32", ("batch", "seq", 2, 6))}
MORE = {"s": ("f32", (4,)), "l": ("i64", ("batch",)), "g": ("i64", ("batch", "seq")), "b": ("f32", (4, "seq", "seq"))}


@pytest.mark.parametrize(
    ("inputs", "operands", "words"),
    [
        (("q", "k", "v", "s", "g", "b", "l", "s"), OPERANDS, ""),
        (("q", "k", "v", "l"), ("slopes",), "against 4 heads"),
        (("q", "k", "v", "b"), ("bias",), ""),
        (("q", "v", "v"), (), "against k"),
        (("q", "k", "v", "s"), (), "1 optional inputs"),
        (("q", "k", "v", "l", "s"), ("length", "sinks"), "in this order"),
        (("q", "k", "v", "l"), ("sinks",), "against 4 heads"),
        (("q", "k", "v", "s"), ("length",), "length ["),
        (("q", "k", "v", "l"), ("segments",), "segments ["),
        (("q", "k", "v", "g"), ("bias",), "bias ["),
        (("k", "q", "v"), (), "k ["),
    ],
)
def test_operands_are_judged(inputs: tuple[str, ...], operands: tuple[str, ...], words: str) -> None:
    attrs = {"causal": False, "window": 0, "softcap": 0.0, "operands": operands, "scale": 0.5}
    values = tuple(Value(name, dtype, shape) for name, (dtype, shape) in {**HEAD, **MORE}.items())
    node = Node("attend", inputs, (Value("out", "f32", ("batch", "seq", 4, 6)),), attrs)
    found = faults(Graph("m", values, (), (node,), ("out",)))
    assert any(words in fault for fault in found) if words else found == [], found

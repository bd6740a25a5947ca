"""Factors between channels and columns: where they can be, the same function with them, and sums that nothing rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.graphs import numpy_exact
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import rescale
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import faults

PLAIN = '{activation="", has_bias=false, has_residual=false}'
ADDED = '{activation="", has_bias=false, has_residual=true}'
ATTENTION = (
    "{eps=1e-06, head_dim=4, layer=0, num_heads=4, num_kv_heads=2, qk_norm=false, rope_dim=4, rope_scale=1.0, scale=0.5, "
    'states=("keys.0", "values.0"), window=%d}'
)
LAYER = f"""graph g
input x: f32[tokens, 16]
input positions: i32[tokens]
state keys.0: f32[2, 4] paged
state values.0: f32[2, 4] paged
param norm: f32[16] from(map(n[16], function="add", value=1.0))
param qkv: f32[32, 16] from(cat(q[16, 16], k[8, 16], v[8, 16], axis=0))
param qkv.bias: f32[32] from(b[32])
param freq: f32[2] data(1.0, 0.1)
param o: f32[16, 16] from(o[16, 16])
param ln: f32[16] from(l[16])
param ln.bias: f32[16] from(c[16])
param gate_up: f32[48, 16] from(g[48, 16])
param down: f32[16, 24] from(d[16, 24])
a: f32[tokens, 16] = rms_norm(x, norm) {{eps=1e-06}}
b: f32[tokens, 32] = linear(a, qkv, qkv.bias) {{activation="", has_bias=true, has_residual=false}}
c: f32[tokens, 16] = paged_attention(b, freq) {ATTENTION % 0}
d: f32[tokens, 16] = linear(c, o, x) {ADDED}
e: f32[tokens, 16] = layer_norm(d, ln, ln.bias) {{eps=1e-06, has_bias=true}}
f: f32[tokens, 24] = linear(e, gate_up) {{activation="silu_mul", has_bias=false, has_residual=false}}
h: f32[tokens, 16] = linear(f, down, d) {ADDED}
i: f32[tokens, 16] = mul_scalar(h) {{value=0.5}}
return i
"""
SIZES = {"n": (16,), "q": (16, 16), "k": (8, 16), "v": (8, 16), "b": (32,), "o": (16, 16), "l": (16,), "c": (16,)}
SIZES |= {"g": (48, 16), "d": (16, 24)}
CHOSEN = {"a": 16, "c": 8, "e": 16, "f": 24}  # values with how many factors


def arrays(random: np.random.Generator) -> dict[str, NDArray[Any]]:
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SIZES.items()}


def given(random: np.random.Generator) -> dict[str, NDArray[Any]]:
    return {"x": random.normal(size=(9, 16)), "positions": np.array([0, 1, 2, 3, 4, 0, 1, 2, 3], np.int32)}


def run(graph: Graph, weights: dict[str, NDArray[Any]], inputs: dict[str, NDArray[Any]], **more: Any) -> NDArray[Any]:
    return interpret(graph, inputs, ArrayWeights(weights), np.float64, query_start=[0, 5, 9], **more)[graph.outputs[0]]


def test_a_layer_with_factors_is_the_same_function() -> None:
    random, before = np.random.default_rng(0), parse_graph(LAYER)
    groups = {group.value: group for group in rescale.find(before).groups}
    assert {value: group.channels for value, group in groups.items()} == CHOSEN and not rescale.find(before).left
    chosen = {value: random.integers(-26, 27, count).tolist() for value, count in CHOSEN.items()}
    after = rescale.run(before, chosen)
    assert faults(after) == [] and parse_graph(print_graph(after)) == after
    assert {p.name for p in after.params if rescale.scaled(p)} == {"qkv", "o", "gate_up", "down"}
    weights, inputs = arrays(random), given(random)
    wanted, found = (run(graph, weights, inputs) for graph in (before, after))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.array_equal(run(rescale.run(before, {}), weights, inputs), wanted)


def test_the_text_of_a_layer_with_factors() -> None:
    """The whole form, once: what the norm loses its readers have; two heads share the values of one."""
    after = rescale.run(parse_graph(LAYER), {"a": [4, *[0] * 14, -1], "c": [1, 2, 3, 4, -1, -2, -3, -4]})
    lines = {line.split(":")[0]: line.partition("from")[2] for line in print_graph(after).splitlines() if "factors" in line}
    assert lines == {
        "param norm": '(factors(map(n[16], function="add", value=1.0), axis=0, quarters="D00000000000000a"))',
        "param qkv": (
            '(factors(factors(cat(q[16, 16], k[8, 16], v[8, 16], axis=0), axis=1, quarters="d00000000000000A"), '
            'axis=0, quarters="000000000000000000000000ABCDabcd"))'
        ),
        "param qkv.bias": '(factors(b[32], axis=0, quarters="000000000000000000000000ABCDabcd"))',
        "param o": '(factors(o[16, 16], axis=1, quarters="abcdabcdABCDABCD"))',
    }


@pytest.mark.parametrize(
    ("old", "new", "reason", "number"),
    [
        ("return i", "return i, a", "their input is read by the user too", 1),
        ("return i", "j: f32[tokens, 16] = add(a, i)\nreturn j", "their input is read by add too", 1),
        ("return i", f"j: f32[tokens, 16] = linear(i, o) {PLAIN}\nk: f32[tokens, 16] = add(i, j)\nreturn k", "are shared", 1),
        ("return i", "j: f32[tokens, 32] = add(b, b)\nreturn i, j", "attention reads what several products make", 1),
        ("a: f32[tokens, 16] = rms_norm(x, norm) {eps=1e-06}", "a: f32[tokens, 16] = add(x, x)", "is made by add", 1),
        ("from(o[16, 16])", "data(" + ", ".join(["0.5"] * 256) + ")", "their weights are shared or constant", 1),
        ("from(l[16])", "data(" + ", ".join(["0.5"] * 16) + ")", "what makes their input is shared or constant", 1),
    ],
)
def test_what_cannot_be_scaled_is_left_with_its_reason(old: str, new: str, reason: str, number: int) -> None:
    before = parse_graph(LAYER.replace(old, new))
    assert faults(before) == []
    found = rescale.find(before)
    (said, count), = ((why, count) for why, count in found.left.items() if reason in why)  # fmt: skip
    assert count == number and said
    random = np.random.default_rng(1)
    after = rescale.run(before, {group.value: random.integers(-9, 9, group.channels).tolist() for group in found.groups})
    weights, inputs = arrays(random), given(random)
    wanted, got = (run(graph, weights, inputs) for graph in (before, after))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("window", [0, 3])
def test_sums_of_whole_numbers_are_the_interpreters(window: int) -> None:
    graph = parse_graph(LAYER.replace(ATTENTION % 0, ATTENTION % window))
    random = np.random.default_rng(2)
    weights, inputs = arrays(random), given(random)
    wanted, found = run(graph, weights, inputs), run(graph, weights, inputs, kernels=numpy_exact.KERNELS)
    assert not [node.op for node in graph.nodes if numpy_exact.unknown_op(node)]
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 0 < error < 2e-4


def test_no_order_of_summing_changes_them() -> None:
    """K's order, and rows beside a row, which decide how a library cuts its sums."""
    random = np.random.default_rng(3)
    x, y, order = random.normal(size=(40, 1200)), random.normal(size=(70, 1200)), random.permutation(1200)
    whole = numpy_exact.product(x, y)
    assert np.array_equal(numpy_exact.product(x[:, order], y[:, order]), whole)
    assert np.array_equal(numpy_exact.product(x[7:8], y[3:20]), whole[7:8, 3:20])
    assert not np.array_equal(x[:, order] @ y[:, order].T, x @ y.T)  # floats that round do not
    np.testing.assert_allclose(whole, x @ y.T, atol=1e-2)
    assert np.array_equal(numpy_exact.mean(x[:, order], 34), numpy_exact.mean(x, 34))


def test_exponentials_and_angles() -> None:
    x = np.concatenate([np.linspace(-60, 60, 5001), [0.0, -1e-9, -699.0]])
    np.testing.assert_allclose(numpy_exact.exp(x), np.exp(x), rtol=1e-14)
    assert numpy_exact.exp(np.array([-np.inf, -1e300])).max() < 1e-300
    angles = np.concatenate([np.linspace(0, 4096, 9001), np.linspace(-9, 9, 1001)])
    sine, cosine = numpy_exact.sine_cosine(angles)
    np.testing.assert_allclose(sine, np.sin(angles), atol=1e-12)
    np.testing.assert_allclose(cosine, np.cos(angles), atol=1e-12)
    np.testing.assert_allclose(numpy_exact.gelu_tanh(x[:-3] / 6), np.asarray(_gelu(x[:-3] / 6)), atol=1e-12)
    assert not np.isnan(numpy_exact.silu(np.array([-1e6, 1e6, 0.0]))).any()


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

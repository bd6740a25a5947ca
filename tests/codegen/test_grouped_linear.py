"""Products with one matrix of a stack for each row, in every format, against the op's numpy on the stored weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.layouts import parse_format, parse_layout, stored
from ferrum.codegen.layouts.activations import act_for
from ferrum.codegen.moves import MOVES
from ferrum.graphs.dims import multiply
from ferrum.graphs.interpret import interpret
from tests.codegen.kernel_harness import run_graph
from tests.codegen.test_array_kernels import FEW, HERE, MANY, Sketch

FORMATS = ("f32", "none", "int8", "int4-g32", "int4a-g32", "int4-g128")


def sketch(tokens: int, times: int, count: int, n: int, k: int, seed: int) -> Sketch:
    """Two products of the same rows' numbers, as experts have: the first of a row that all copies share, and one of numbers with
    several axes."""
    s = Sketch(tokens, np.random.default_rng(seed))
    rows = multiply("tokens", times)
    group = s.places((rows,), count)
    copies = s.add("expand", s.floats(("tokens", 1, k)), shape=("tokens", times, k))
    s.add("grouped_linear", s.add("reshape", copies, shape=(rows, k)), s.floats((count, n, k), stored=True), group)
    s.add("grouped_linear", s.floats((rows, n)), s.floats((count, k, n), stored=True), group)
    s.add("grouped_linear", s.floats(("tokens", 2, k)), s.floats((count, n, k), stored=True), s.places(("tokens", 2), count))
    return s


def check(s: Sketch, quant: str, target: Any) -> None:
    """Rows are rounded as the product's kernels round them: what is left is the order of sums."""
    graph = s.graph()
    found, laid_out, weights = run_graph(graph, s.arrays, s.weights, target, quant)
    rounded = dict(s.arrays)
    moved = {node.output.name: node.inputs[0] for node in laid_out.nodes if node.op in MOVES}
    for node in (node for node in laid_out.nodes if node.op == "grouped_linear"):
        name = node.inputs[0]
        while name in moved:
            name = moved[name]
        param, x = laid_out.param(node.inputs[1]), s.arrays[name]
        act = act_for(parse_format(param.format), param.shape[2], target.rounds_to_bf16)
        rounded[name] = Quantize.reference(x.reshape(-1, x.shape[-1]), act).reshape(x.shape)
    wanted = interpret(laid_out, rounded, weights)
    for name in graph.outputs:
        error, scale = np.abs(found[name] - wanted[name]), max(1.0, float(np.abs(wanted[name]).max()))
        assert error.max() <= (2e-2 if quant.startswith("int") else 2e-5) * scale  # a border of two levels
        assert np.median(error) <= 2e-5 * scale


@FEW
@given(st.data())
def test_grouped_products(data: st.DataObject) -> None:
    check(*drawn(data.draw))


@pytest.mark.slow
@MANY
@given(st.data())
def test_more_grouped_products(data: st.DataObject) -> None:
    check(*drawn(data.draw))


def drawn(draw: Any) -> tuple[Sketch, str, Any]:
    sizes = st.integers(1, 150)
    rows = draw(st.sampled_from([1, 2, 7, 30])), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3, 60]))
    s = sketch(*rows, draw(sizes), draw(sizes), draw(st.integers(0, 100)))
    return s, draw(st.sampled_from(FORMATS)), draw(st.sampled_from(HERE))


@pytest.mark.parametrize("quant", ["none", pytest.param("int4-g32", marks=pytest.mark.slow)])
def test_a_row_has_the_same_bits_in_any_company(quant: str) -> None:
    """Of 60 rows many share a matrix; alone each is a run of its own."""
    s = sketch(60, 1, 3, 40, 96, 5)
    found, _, _ = run_graph(s.graph(), s.arrays, s.weights, HERE[-1], quant)
    for row in (0, 17, 59):
        alone = {name: s.arrays[name][row : row + 1] for name in (value.name for value in s.inputs)}
        one, _, _ = run_graph(s.graph(), alone, s.weights, HERE[-1], quant)
        for name in one:
            np.testing.assert_array_equal(one[name][0], found[name][row])


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8-g32", "int4-g32", "int4a-g32", "int4s-g32"])
@pytest.mark.parametrize("name", ["unit16x2h1", "rows16h1"])
def test_stacked_matrices_are_laid_out_as_each_alone(fmt: str, name: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 37, 70)).astype(np.float32)
    layout, one = parse_layout(name, fmt, (3, 37, 70)), parse_layout(name, fmt, (37, 70))
    data = stored(values, layout)
    assert len(data) == layout.nbytes == 3 * one.nbytes
    np.testing.assert_array_equal(data, np.concatenate([stored(each, one) for each in values]))
    np.testing.assert_array_equal(layout.decode(data)[[2, 0]], layout.decode(data, np.array([2, 0])))
    np.testing.assert_array_equal(layout.decode(data)[1], one.decode(stored(values[1], one)))

"""Parameter expressions: any piece is the piece of the whole, blocks mean the values, simplest forms mean the same."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.constants import read_graph, save_graph
from ferrum.graphs.expression_text import parse_expression, print_expression
from ferrum.graphs.expressions import expression as e
from ferrum.graphs.expressions.evaluate import Arrays, ExprRows, evaluate, length, lies_across, pick, to_float
from ferrum.graphs.expressions.floats import why_floats
from ferrum.graphs.expressions.schemes import Q8
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.expressions.wide import Wide
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph, Param, Value
from ferrum.graphs.lines import tokenize
from ferrum.graphs.passes import canonicalize, fuse_norm, merge_linear
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import faults
from tests.graphs.drawn_expressions import Made, whole

SETTINGS = settings(max_examples=150, deadline=None)


def same(a: NDArray[Any], b: NDArray[Any]) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


@SETTINGS
@given(st.data(), st.booleans(), st.booleans())
def test_a_piece_is_the_piece_of_the_whole(data: st.DataObject, quantized: bool, build: bool) -> None:
    made = Made(data, quantized)
    expr = made.tree(build)
    with np.errstate(all="ignore"):
        expected = whole(expr, made.arrays)
        shape = expr.type.shape
        assert expected.shape == shape
        starts = [made.integer(0, size - 1) for size in shape]
        box = tuple(slice(a, made.integer(a + 1, size), made.integer(1, 3)) for a, size in zip(starts, shape, strict=True))
        same(evaluate(expr, Arrays(made.arrays), box), expected[box])
        source = ExprRows(expr, Arrays(made.arrays))
        same(source.values(slice(starts[0], shape[0])), expected[starts[0] :])
        ids = np.array([made.integer(0, shape[0] - 1) for _ in range(made.integer(0, 5))], np.int64)
        same(pick(source, ids), expected[ids])
        wide = Wide(source, made.integer(1, 40))
        for low in range(0, shape[0], 2):
            same(wide.values(slice(low, min(low + 2, shape[0]))), expected[low : low + 2])
        if len(shape) > 1:
            for whose in (source, wide):
                same(whose.element(starts[0]).values(slice(0, shape[1])), expected[starts[0]])
    assert all(length(part) >= 1 for part in box)


@SETTINGS
@given(st.data(), st.booleans())
def test_simple_forms_mean_the_same(data: st.DataObject, quantized: bool) -> None:
    """Each step by its class and by its function, and the text of both."""
    made = Made(data, quantized)
    expr = made.tree()
    simple = simplify(expr)
    assert (simple.type.shape, simple.type.dtype) == (expr.type.shape, expr.type.dtype)
    with np.errstate(all="ignore"):
        same(whole(simple, made.arrays), whole(expr, made.arrays))
    assert simplify(simple) == simple
    for found in (expr, simple):
        assert parse_expression(tokenize(1, print_expression(found))) == found


def simplify(expr: e.Expr) -> e.Expr:
    match expr:
        case e.Rows():
            return e.rows(simplify(expr.source), expr.axis, expr.start, expr.stop, expr.step)
        case e.Cat():
            return e.cat([simplify(part) for part in expr.parts], expr.axis)
        case e.Reshape():
            return e.reshape(simplify(expr.source), expr.shape)
        case e.Permute():
            return e.permute(simplify(expr.source), expr.order)
        case e.Map():
            return e.mapped(simplify(expr.source), expr.function, expr.value)
        case e.Stack():
            return e.Stack(tuple(map(simplify, expr.parts)))
    return expr


@SETTINGS
@given(st.data())
def test_blocks_mean_the_values(data: st.DataObject) -> None:
    """Bit for bit, in any rows; what has lost its blocks says by which step."""
    made = Made(data, quantized=True)
    expr = made.tree()
    kept = expr.type.blocked
    has = any("Dequant" in type(part).__name__ for part in walk(expr))
    assert bool(why_floats(expr)) == (has and kept is None)
    if kept is None or kept.axis == 0:
        return
    source = ExprRows(expr, Arrays(made.arrays))
    start = made.integer(0, source.shape[0] - 1)
    rows = slice(start, made.integer(start + 1, source.shape[0]))
    found = source.blocks(rows)
    same(found.values(), source.values(rows))
    assert found.codes.dtype.itemsize == 1 and (found.size, found.axis) == (kept.size, kept.axis)
    assert math.prod(found.scales.shape) * kept.size == math.prod(found.codes.shape)
    if kept.axis > 1:
        one = source.element(start)
        assert one.blocked == replace(kept, axis=kept.axis - 1)
        same(one.blocks(slice(0, one.shape[0])).values(), source.values(slice(start, start + 1))[0])
    again = Wide(source, made.integer(1, 40)).blocks(rows)
    assert np.array_equal(again.codes, found.codes) and again.scales.tobytes() == found.scales.tobytes()


def walk(expr: e.Expr) -> list[e.Expr]:
    return [expr, *(found for part in e.inputs(expr) for found in walk(part))]


@SETTINGS
@given(st.data())
def test_outer_cuts_and_joins_commute_with_blocks(data: st.DataObject) -> None:
    """Blocks of a cut are the cut of the blocks, blocks of a join the join of the blocks."""
    made = Made(data, quantized=True)
    leaf = e.Dequant(Q8(4), (made.add(made.random.integers(0, 120, (5, 12), np.uint8), "u8"),))
    other = made.like(leaf)
    reader = Arrays(made.arrays)
    blocks = [ExprRows(part, reader).blocks(slice(0, 5)) for part in (leaf, other)]
    start, step = made.integer(0, 4), made.integer(1, 2)
    stop = made.integer(start + 1, 5)
    cut = ExprRows(e.rows(leaf, 0, start, stop, step), reader)
    assert np.array_equal(cut.blocks(slice(0, cut.shape[0])).codes, blocks[0].codes[start:stop:step])
    joined = ExprRows(e.cat([leaf, other], 0), reader).blocks(slice(0, 10))
    for key in ("codes", "scales"):
        assert np.array_equal(getattr(joined, key), np.concatenate([getattr(part, key) for part in blocks]))
    stacked = ExprRows(e.Stack((leaf, other)), reader).blocks(slice(0, 2))
    assert np.array_equal(stacked.codes, np.stack([part.codes for part in blocks]))


def test_axes_of_one_place_come_and_go_beside_blocks() -> None:
    units = np.random.default_rng(3).integers(0, 120, (5, 12), np.uint8)
    reader, leaf = Arrays({"w": units}), e.Dequant(Q8(4), (e.Tensor("w", (5, 12), "u8"),))
    turned = e.Permute(leaf, (1, 0))
    stacked = e.Cat(tuple(e.Reshape(turned, (1, 8, 5)) for _ in range(2)), 0)
    assert turned.type.blocked is not None and stacked.type.blocked == replace(turned.type.blocked, axis=1)
    one = ExprRows(stacked, reader).element(1)
    assert one.blocked == turned.type.blocked and one.shape == (8, 5)
    same(ExprRows(e.permute(one.expr, (1, 0)), reader).blocks(slice(0, 5)).values(), ExprRows(leaf, reader).values(slice(0, 5)))
    assert e.Reshape(turned, (8, 5, 1)).type.blocked == turned.type.blocked
    assert e.Reshape(turned, (4, 2, 5)).type.blocked is None


def test_what_takes_blocks_away_is_named() -> None:
    leaf = e.Dequant(Q8(32), (e.Tensor("w", (4, 68), "u8"),))
    assert leaf.type == e.Type((4, 64), "f32", e.Blocked("q8", 32, 1, 8, False, "f16"))
    for expr, word in (
        (e.Rows(leaf, 1, 0, 32), "rows"),
        (e.Cat((leaf, leaf), 1), "cat"),
        (e.Cat((leaf, e.Tensor("f", (2, 64))), 0), "cat"),
        (e.Permute(e.Map(leaf, "mul", 2.0), (1, 0)), "map"),
        (e.Reshape(leaf, (256,)), "reshape"),
    ):
        assert expr.type.blocked is None and why_floats(expr) == f"{word} makes floats of blocks"
    assert e.Factors(leaf, 0, "000a").type.blocked is None and why_floats(e.Factors(leaf, 0, "000a")) == ""
    assert why_floats(leaf) == why_floats(e.Permute(leaf, (1, 0))) == why_floats(e.Tensor("f", (2,))) == ""


def test_pieces_of_one_tensor_become_the_tensor() -> None:
    """A fused projection that is cut by its module and joined by a pass."""
    fused = e.Tensor("qkv", (12, 4))
    parts = [e.rows(fused, 0, *ends) for ends in ((0, 8), (8, 10), (10, 12))]
    assert e.cat(parts, 0) == fused
    assert e.cat(parts[:2], 0) == e.Rows(fused, 0, 0, 10)
    assert e.rows(e.cat(parts[1:], 0), 0, 2, 4) == parts[2]
    assert e.rows(e.cat([fused, e.Tensor("more", (3, 4))], 0), 0, 12, 15) == e.Tensor("more", (3, 4))
    assert e.permute(e.permute(fused, (1, 0)), (1, 0)) == e.reshape(e.reshape(fused, (48,)), (12, 4)) == fused


@pytest.mark.parametrize(
    "make",
    [
        lambda t: e.rows(t, 2, 0, 1), lambda t: e.rows(t, 0, 3, 3), lambda t: e.rows(t, 0, 0, 5), lambda t: e.cat([], 0),
        lambda t: e.cat([t, e.Tensor("u", (4, 7))], 0), lambda t: e.cat([t, e.Tensor("u", (4, 6), "i8")], 0),
        lambda t: e.cat([t], 2), lambda t: e.reshape(t, (5, 5)), lambda t: e.permute(t, (0, 0)), lambda t: e.mapped(t, "tan"),
        lambda t: e.factors(t, 0, "a0A"), lambda t: e.factors(t, 0, "a0A?"), lambda t: e.factors(t, 2, ""),
    ],
)  # fmt: skip
def test_faults_are_told_where_they_are_made(make: Any) -> None:
    with pytest.raises(e.ExpressionFault):
        make(e.Tensor("t", (4, 6)))


def test_matrices_that_lie_across_are_known() -> None:
    """A stack of them does not: its first axis is the tensor's."""
    stack = e.permute(e.Tensor("w", (3, 50, 70)), (0, 2, 1))
    assert not lies_across(stack) and lies_across(e.element(stack, 1))


@pytest.mark.parametrize("halves", [1, 2])
def test_a_transposed_tensor_is_read_once(halves: int) -> None:
    """However many pieces are asked for: each element is read one time, in runs; but for the run in which the halves meet."""
    array = np.random.default_rng(0).normal(size=(50, 700)).astype(np.float32)
    read = []

    class Counting(Arrays):
        def read(self, name: str) -> Any:
            class Seen:
                def __getitem__(self, box: tuple[slice, ...]) -> NDArray[Any]:
                    read.append(array[box].size)
                    return array[box]

            return Seen()

    wide = Wide(ExprRows(e.permute(e.Tensor("w", (50, 700)), (1, 0)), Counting({"w": array})), run_values=50 * 128)
    size = 700 // halves
    for start in range(0, size, 16):  # both halves in turn, as gate and up are
        for half in range(halves):
            rows = slice(half * size + start, half * size + min(start + 16, size))
            same(wide.values(rows), np.ascontiguousarray(array.T[rows]))
    assert sum(read) == array.size + (halves - 1) * 50 * 128 and len(read) == 6 + (halves - 1)


def test_bfloat16_is_widened() -> None:
    bits = np.array([[0x3F80, 0xC000], [0x0000, 0x7F80]], np.uint16)
    assert to_float(bits, "bf16").tolist() == [[1.0, -2.0], [0.0, float("inf")]]
    with pytest.raises(FerrumError, match="i8 cannot be read as floats"):
        to_float(np.zeros(1, np.int8), "i8")


# in graphs


def test_constants_of_weights_fold() -> None:
    """1 + w and -exp(w) are parameters, so an RMSNorm around one is fused; a fused projection stays whole."""
    text = """graph g
input x: f32[batch, seq, 8]
param norm: f32[8] from(norm.weight)
param a: f32[8] from(a_log)
param w: f32[8, 12] from(conv1d.weight)
square: f32[batch, seq, 8] = pow_scalar(x) {value=2.0}
mean: f32[batch, seq, 1] = mean(square) {axis=2, keepdim=true}
eps: f32[batch, seq, 1] = add_scalar(mean) {value=1e-06}
scale: f32[batch, seq, 1] = rsqrt(eps)
plain: f32[batch, seq, 8] = mul(x, scale)
one: f32[8] = add_scalar(norm) {value=1.0}
normed: f32[batch, seq, 8] = mul(plain, one)
grown: f32[8] = exp(a)
decay: f32[8] = neg(grown)
out: f32[batch, seq, 8] = mul(normed, decay)
y: f32[batch, seq, 12] = matmul(out, w)
return y
"""
    before = parse_graph(text)
    graph = fuse_norm.run(canonicalize.run(before))
    assert faults(graph) == []
    assert [node.op for node in graph.nodes] == ["rms_norm", "mul", "linear"]
    printed = print_graph(graph)
    assert 'from(map(norm.weight[8], function="add", value=1.0))' in printed
    assert 'from(map(map(a_log[8], function="exp", value=0.0), function="mul", value=-1.0))' in printed
    assert "from(permute(conv1d.weight[8, 12], order=(1, 0)))" in printed
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=shape) for name, shape in (("norm.weight", 8), ("a_log", 8), ("conv1d.weight", (8, 12)))}
    results = [interpret(g, {"x": np.ones((1, 2, 8))}, ArrayWeights(arrays), np.float64)[g.outputs[0]] for g in (before, graph)]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)


def test_a_fused_projection_stays_whole() -> None:
    """Cut by the module, joined by the pass: the tensor itself."""
    text = """graph g
input x: f32[batch, seq, 4]
param fused: f32[12, 4] from(gate_up_proj.weight)
gate_rows: f32[6, 4] = slice(fused) {axis=0, end=6, start=0}
up_rows: f32[6, 4] = slice(fused) {axis=0, end=12, start=6}
gate: f32[batch, seq, 6] = linear(x, gate_rows) {activation="", has_bias=false, has_residual=false}
up: f32[batch, seq, 6] = linear(x, up_rows) {activation="", has_bias=false, has_residual=false}
y: f32[batch, seq, 6] = gated(gate, up) {activation="silu_mul"}
return y
"""
    graph = merge_linear.run(canonicalize.run(parse_graph(text)))
    assert [p.source for p in graph.params] == [e.Tensor("gate_up_proj.weight", (12, 4))]
    assert [node.op for node in graph.nodes] == ["linear"]


def test_external_parameters_and_shards(tmp_path: Path) -> None:
    text = """graph g
input x: f32[batch, seq, 4]
param a: f32[2, 4] external(request)
param b: f32[4, 2] from(b) shard(1)
low: f32[batch, seq, 2] = linear(x, a) {activation="", has_bias=false, has_residual=false}
y: f32[batch, seq, 4] = linear(low, b) {activation="", has_bias=false, has_residual=false}
return y
"""
    graph = parse_graph(text)
    assert faults(graph) == [] and print_graph(graph) == text and graph.param("b").shard == 1
    random = np.random.default_rng(0)
    a, b, x = random.normal(size=(2, 4)), random.normal(size=(4, 2)), random.normal(size=(1, 3, 4))
    got = interpret(graph, {"x": x}, ArrayWeights({"b": b}, bound={"a": a}), np.float64)["y"]
    np.testing.assert_allclose(got, x @ a.T @ b.T, rtol=1e-12)


@pytest.mark.parametrize("size", [256, 257, 5000])
def test_long_constants_lie_beside_the_text(tmp_path: Path, size: int) -> None:
    values = np.random.default_rng(0).normal(size=size)
    param = Param(Value("table", "f32", (size,)), Constant(values))
    graph = Graph("g", (), (param, replace(param, value=replace(param.value, name="again"))), (), ("table",))
    path = tmp_path / "01-import.txt"
    save_graph(graph, path)
    assert read_graph(path) == graph
    beside = path.with_suffix(".constants")
    assert beside.exists() == (size > 256) == (len(path.read_text()) < 1000)
    if size > 256:
        assert beside.stat().st_size == 8 * size + 40  # once, however many parameters have it
        whole_file = beside.read_bytes()
        for damage in (whole_file[:-1], whole_file[:20], whole_file[:-1] + b"\xff"):
            beside.write_bytes(damage)
            with pytest.raises(FerrumError, match="damaged"):
                read_graph(path)
        beside.unlink()
        with pytest.raises(FerrumError, match="numbers of table are not there"):
            read_graph(path)
        save_graph(Graph("g", (), (), (), ("x",)), path)
        assert not beside.exists()

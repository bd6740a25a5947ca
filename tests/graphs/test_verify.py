"""The verifier finds every kind of fault, all at once, and survives any graph."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from ferrum.errors import FerrumError
from ferrum.graphs.ir import Graph
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import faults, verify
from tests.graphs.conftest import GOLDENS
from tests.graphs.strategies import GRAPHS

HEAD = """graph m
input t: i64[batch, seq]
input x: f32[batch, seq, 8]
input q: f32[batch, seq, 4, 8]
input at: i64[seq]
param w: f32[6, 8] from(w)
param b: f32[6] from(b)
param n: f32[8] from(n)
param f: f32[4] data(1.0, 0.1, 0.01, 0.001)
"""
ATTEND = "causal=true, operands=(), scale=1.0, softcap=0.0, window={}"
LINEAR = 'activation="", has_bias=false, has_residual=false'


def fault_of(line: str, head: str = HEAD) -> list[str]:
    return faults(parse_graph(f"{head}{line}\nreturn y\n"))


@pytest.mark.parametrize(
    "line",
    [
        f"y: f32[batch, seq, 6] = linear(x, w) {{{LINEAR}}}",
        'y: f32[batch, seq, 6] = linear(x, w, b) {activation="", has_bias=true, has_residual=false}',
        'y: f32[batch, seq, 3] = linear(x, w) {activation="silu_mul", has_bias=false, has_residual=false}',
        "y: f32[batch, seq, 8] = rms_norm(x, n) {eps=1e-06}",
        "y: f32[batch, seq, 4, 8] = rope(q, at, f) {rope_dim=8, rope_scale=1.0, rows=(), seq_axis=1}",
        "y: f32[batch, seq, 2, 4] = reshape(x)",
        "y: f32[tokens, 8] = reshape(x)",
        "y: f32[seq, batch, 8] = permute(x) {order=(1, 0, 2)}",
        "y: f32[batch, seq, 16] = cat(x, x) {axis=2}",
        "y: f32[batch, seq, 3] = slice(x) {axis=2, end=4, start=1}",
        "y: f32[batch, seq, 1] = mean(x) {axis=2, keepdim=true}",
        "y: bool[batch, seq, 8] = lt(x, x)",
        "y: i64[seq] = iota() {start=0, step=1}",
        "y: f32[seq, seq] = full() {value=0.0}",
        "y: f32[batch, seq, 8] = embedding(t, w) {scale=1.0}",
    ],
)
def test_sound_nodes(line: str) -> None:
    assert fault_of(line) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("y: f32[batch, seq, 6] = nothing(x)", "unknown"),
        ("y: f32[batch, seq, 8] = neg(z)", "'z' is not defined"),
        ("y: f32[batch, seq, 8] = neg(x, x)", "2 inputs, expected 1"),
        ("y: f32[batch, seq, 8] = add_scalar(x)", "attributes missing: value"),
        ("y: f32[batch, seq, 8] = neg(x) {value=1.0}", "attributes unknown: value"),
        ("y: f32[batch, seq, 8] = add_scalar(x) {value=1}", "value must be float"),
        ("y: i64[batch, seq, 8] = neg(x)", "declared i64"),
        ("y: f32[batch, seq, 9] = neg(x)", "declared f32"),
        ("y: f32[batch, seq, 8] = add(x, t)", "dtypes f32 and i64 differ"),
        ("y: f32[batch, seq, 8] = add(x, w)", "do not broadcast"),
        (f"y: f32[batch, seq, 8] = linear(x, n) {{{LINEAR}}}", "two axes"),
        (f"y: f32[batch, seq, 6] = linear(x, w, b) {{{LINEAR}}}", "3 inputs do not fit"),
        (f"y: f32[batch, seq, 4, 6] = linear(q, f) {{{LINEAR}}}", "two axes"),
        ('y: f32[batch, seq, 6] = linear(x, w) {activation="gelu", has_bias=false, has_residual=false}', "activation"),
        ("y: f32[batch, seq, 8] = rms_norm(x, b) {eps=1e-06}", "against rows of 8"),
        ("y: f32[batch, seq, 4, 8] = rope(q, at, f) {rope_dim=6, rope_scale=1.0, rows=(), seq_axis=1}", "rope_dim"),
        ("y: f32[batch, seq, 9] = reshape(x)", "unequal numbers"),
        ("y: f32[seq, batch, 8] = permute(x) {order=(1, 1, 2)}", "not a permutation"),
        ("y: f32[batch, 1, 8] = slice(x) {axis=1, end=1, start=0}", "symbolic"),
        ("y: f32[batch, seq, 9] = slice(x) {axis=2, end=9, start=0}", "outside"),
        ("y: f32[batch, seq, 4, 8] = attend(q, q, x) {" + ATTEND.format(0) + "}", "v ["),
        ("y: f32[batch, seq, 4, 8] = attend(q, q, q) {" + ATTEND.format(-1) + "}", "window"),
        ("x: f32[batch, seq, 8] = neg(x)\ny: f32[batch, seq, 8] = neg(x)", "defined twice"),
        ("y: f99[batch, seq, 8] = cast(x)", "dtype 'f99' is unknown"),
        ("y: f32[batch, size, 8] = full() {value=0.0}", "symbolic dim 'size'"),
        ("y: f32[batch, 0, 8] = full() {value=0.0}", "not positive"),
    ],
)
def test_faults(line: str, words: str) -> None:
    found = fault_of(line)
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("param p: f32[3] data(1.0, 2.0)", "2 data elements for a shape of 3"),
        ("param p: f32[3] from(a[4])", "declared f32[3], but it is made as f32[4]"),
        ("param p: f32[3] from(cat(a[1, 3], b[1, 2], axis=0))", "cat of parts that differ: [1, 3], [1, 2]"),
        ("param p: f32[2] from(rows(a[4], axis=0, start=3, stop=5, step=1))", "rows 3:5:1 of 4 are not inside of it"),
        ("param p: f32[4] from(reshape(a[2, 3], shape=(4)))", "reshape of [2, 3] to [4]"),
        ("param p: f32[2, 3] from(permute(a[3, 2], order=(1, 1)))", "order [1, 1] of 2 axes"),
        ('param p: f32[3] from(map(a[3], function="sin", value=0.0))', "map by 'sin', which is not one of add, mul, "),
        ('param p: f32[3] from(map(a: i8[3], function="add", value=1.0))', "map of i8, which is not float"),
        ('param p: f32[1, 32] from(dequant(a: u8[1, 33], scheme="q8", size=32))', "33 bytes are not whole blocks of 34"),
        ("param p: f32[3] external(dawn)", "bound at 'dawn', which is not one of load, request"),
        ("param p: f32[3, 2] from(a) shard(2)", "no shards along axis 2"),
        ("param p: f32[2] data(1.0, 2.0) shard(0)", "no shards along axis 0"),
        ("param p: f32[seq] from(a)", "fixed dims"),
    ],
)
def test_param_faults(param: str, words: str) -> None:
    assert any(words in fault for fault in fault_of("y: f32[batch, seq, 8] = neg(x)", HEAD + param + "\n"))


def test_all_faults_are_listed_and_the_error_counts_them() -> None:
    text = HEAD + "".join(f"y{i}: f32[batch, seq, 9] = neg(x)\n" for i in range(5)) + "return nowhere\n"
    graph = parse_graph(text)
    assert len(faults(graph)) == 6
    with pytest.raises(FerrumError, match=r"and 3 more.*after fuse_norm") as caught:
        verify(graph, "fuse_norm")
    assert caught.value.code == "graph-invalid"


def test_a_finished_graph_has_only_paged_ops() -> None:
    stages = GOLDENS / "stages"
    finished = parse_graph((stages / "12-fuse_paged.txt").read_text(encoding="utf-8"))
    assert faults(finished, paged=True) == []
    unfinished = faults(parse_graph((stages / "07-merge_linear.txt").read_text(encoding="utf-8")), paged=True)
    assert [fault.split(" = ")[1].split(":")[0] for fault in unfinished] == ["add", "add"]  # attention may be of whole sequences


@settings(max_examples=300, deadline=None)
@given(GRAPHS)
def test_any_graph_is_judged(graph: Graph) -> None:
    assert all(isinstance(fault, str) for fault in faults(graph))

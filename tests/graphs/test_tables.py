"""Masks and rotations are recognized by their values, in any spelling and at any size, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph, Param, Value
from ferrum.graphs.rewrite import Scope
from ferrum.graphs.tables import NotATable, Sees, Tables, rotation, score_table
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import verify

POSITIONS = """graph m
input x: f32[batch, seq]
at: i64[seq] = iota() {start=0, step=1}
i: i64[seq, 1] = reshape(at)
j: i64[1, seq] = reshape(at)
d: i64[seq, seq] = sub(i, j)
c0: i64[] = full() {value=0.0}
cw: i64[] = full() {value=WINDOW.0}
low: f32[] = full() {value=-inf}
zero: f32[] = full() {value=0.0}
ones: bool[seq, seq] = full() {value=1.0}
"""
LE, GE = "m1: bool[seq, seq] = ge(d, c0)", "m1: bool[seq, seq] = le(j, i)"
NEAR = "m2: bool[seq, seq] = lt(d, cw)"


def body(*lines: str) -> str:
    return "".join(line + "\n" for line in lines)


SPELLINGS = {
    "distance": body(LE, NEAR, "m: bool[seq, seq] = and(m1, m2)"),
    "compare": body(
        GE,
        "s: i64[1, seq] = add_scalar(j) {value=WINDOW.0}",
        "m2: bool[seq, seq] = lt(i, s)",
        "m: bool[seq, seq] = and(m2, m1)",
    ),
    "triangles": body(
        "m1: bool[seq, seq] = tril(ones) {diagonal=0}",
        "m2: bool[seq, seq] = triu(ones) {diagonal=MINUS}",
        "m: bool[seq, seq] = and(m1, m2)",
    ),
    "not or": body(
        "a: bool[seq, seq] = gt(j, i)",
        "b: bool[seq, seq] = ge(d, cw)",
        "c: bool[seq, seq] = or(a, b)",
        "m: bool[seq, seq] = not(c)",
    ),
    "float": body(
        LE,
        NEAR,
        "b: bool[seq, seq] = and(m1, m2)",
        "n: bool[seq, seq] = not(b)",
        "m: f32[seq, seq] = where(n, low, zero)",
    ),
    "four axes": body(
        LE,
        NEAR,
        "b: bool[seq, seq] = and(m1, m2)",
        "r: bool[1, 1, seq, seq] = reshape(b)",
        "m: bool[batch, 1, seq, seq] = expand(r)",
    ),
}


def scope_of(lines: str, window: int = 5, before: str = POSITIONS) -> Scope:
    text = (before + lines + "return m\n").replace("WINDOW", str(window)).replace("MINUS", str(1 - window))
    graph = verify(parse_graph(text))
    scope = Scope(graph, ())
    for node in graph.nodes:
        scope.process(node)
    return scope


def table_of(scope: Scope, name: str = "m") -> Sees | None:
    return score_table(name, scope.nodes, scope.params, scope.types)


def window_of(lines: str, window: int = 5) -> int | None:
    found = table_of(scope_of(lines, window))
    return None if found is None or found.slopes or not found.causal else found.window


@pytest.mark.parametrize("name", sorted(SPELLINGS))
@pytest.mark.parametrize("window", [1, 2, 5, 4096])
def test_windows(name: str, window: int) -> None:
    assert window_of(SPELLINGS[name], window) == window


def test_causal() -> None:
    assert window_of(body(LE.replace("m1", "m"))) == 0
    assert window_of("m: bool[seq, seq] = tril(ones) {diagonal=0}\n") == 0
    assert window_of("m: bool[seq, seq] = eq(d, c0)\n") == 1  # each token sees itself


@pytest.mark.parametrize(
    "text",
    [
        "m: bool[seq, seq] = lt(j, i)\n",
        "m: bool[seq, seq] = ge(j, i)\n",
        "m: bool[seq, seq] = lt(d, cw)\n",
        "m: bool[seq, seq] = tril(ones) {diagonal=1}\n",
        "m: bool[seq, seq] = ne(d, c0)\n",
        "m: bool[seq, seq] = not(ones)\n",
        body(LE, "one: f32[] = full() {value=-1.0}", "m: f32[seq, seq] = where(m1, zero, one)"),
        body(LE, "f: f32[seq, seq] = cast(d)", "m: f32[seq, seq] = where(m1, f, low)"),  # a bias, and no mask alone
    ],
)
def test_other_masks(text: str) -> None:
    assert window_of(text) is None


BOTH = body("away: i64[seq, seq] = abs(d)", "m1: bool[seq, seq] = lt(away, cw)")


@pytest.mark.parametrize(
    ("text", "window"),
    [
        (body("m: f32[seq, seq] = full() {value=0.0}"), 0),
        (body("m: bool[seq, seq] = or(ones, ones)"), 0),
        (BOTH.replace("m1", "m"), 5),
        (BOTH + body("m: f32[seq, seq] = where(m1, zero, low)"), 5),
        # what all keys of a query get changes nothing, and what falls with the distance is none of these
        (BOTH + body("f: f32[seq, 1] = cast(i)", "m: f32[seq, seq] = where(m1, f, low)"), 5),
        (BOTH + body("f: f32[seq, seq] = cast(d)", "m: f32[seq, seq] = where(m1, f, low)"), None),
        (body("f: f32[seq, seq] = cast(d)", "m: f32[seq, seq] = mul_scalar(f) {value=0.5}"), None),
    ],
)
def test_masks_of_both_directions(text: str, window: int | None) -> None:
    assert table_of(scope_of(text)) == (None if window is None else Sees(window, causal=False))


def test_what_is_added_to_all_keys_of_a_query_changes_no_weight() -> None:
    assert window_of(body(LE, "one: f32[] = full() {value=1.0}", "m: f32[seq, seq] = where(m1, one, low)")) == 0
    assert window_of(body(LE, "f: f32[seq, 1] = cast(i)", "m: f32[seq, seq] = where(m1, f, low)")) == 0


SLOPES = body(
    "s: f32[2, 1, 1] = reshape(slopes)",
    "k: f32[1, seq] = cast(j)",
    "bias: f32[2, 1, seq] = mul(s, k)",
    "zeros: f32[seq, seq] = where(m2, zero, low)",
    "m: f32[2, seq, seq] = add(bias, zeros)",
)


WITH_SLOPES = POSITIONS.replace("seq]\n", "seq]\nparam slopes: f32[2] data(0.5, 0.125)\n", 1)
NEARBY = body(LE, NEAR.replace("m2", "m3"), "m2: bool[seq, seq] = and(m1, m3)")


@pytest.mark.parametrize(("mask", "window"), [(body(LE.replace("m1", "m2")), 0), (NEARBY, 7)])
def test_a_bias_that_grows_with_the_distance_is_slopes(mask: str, window: int) -> None:
    """ALiBi, whose rows may start anywhere."""
    assert table_of(scope_of(mask + SLOPES, window or 5, WITH_SLOPES)) == Sees(window, (0.5, 0.125))
    square = SLOPES.replace("mul(s, k)", "mul(s, k2)").replace("bias:", "k2: f32[1, seq] = pow_scalar(k) {value=2.0}\nbias:", 1)
    assert table_of(scope_of(mask + square, window or 5, WITH_SLOPES)) is None


def test_a_mask_that_is_stored_says_its_window_by_its_values() -> None:
    """Rows and columns are cut from a table of the model's longest sequence."""
    size, window = 40, 6
    rows = np.arange(size)
    stored = (rows[:, None] >= rows) & (rows[:, None] - rows < window)
    scope = scope_of(body(LE.replace("m1", "m")))
    table = scope.add_param(Param(Value("t", "bool", (size, size)), Constant(stored)))
    cut = scope.emit("take", scope.emit("take", table, "at", axis=0), "at", axis=1)
    assert table_of(scope, cut) == Sees(window)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPELLINGS)), st.integers(1, 9), st.integers(0, 99))
def test_points_agree_with_the_interpreter(name: str, window: int, random: int) -> None:
    text = (POSITIONS + SPELLINGS[name] + "return m\n").replace("WINDOW", str(window)).replace("MINUS", str(1 - window))
    graph = parse_graph(text)
    want = interpret(graph, {"x": np.zeros((2, 13))}, ArrayWeights({}), np.float64)["m"]
    scope = scope_of(SPELLINGS[name], window)
    rng = np.random.default_rng(random)
    points = tuple(rng.integers(0, size, 20) for size in want.shape)
    got = Tables(scope.nodes, scope.params, scope.types, {"batch": 2, "seq": 13, "tokens": 26}).at("m", points)
    np.testing.assert_array_equal(got, want[points].astype(np.float64))


ROPE = """graph m
input x: f32[batch, seq, 2, 6]
param f: f32[3] data(1.0, 0.25, 0.001)
at: i64[seq] = iota() {start=START, step=1}
p: f32[seq] = cast(at)
c: f32[seq, 1, 1] = reshape(p)
a: f32[seq, 1, 3] = mul(c, f)
w: f32[seq, 1, 6] = cat(a, a) {axis=2}
c1: f32[seq, 1, 6] = cos(w)
s1: f32[seq, 1, 6] = sin(w)
cos: f32[seq, 1, 6] = mul_scalar(c1) {value=1.25}
sin: f32[seq, 1, 6] = mul_scalar(s1) {value=FACTOR}
return cos, sin
"""


def rope_of(start: int = 0, factor: str = "1.25") -> tuple[tuple[float, ...], float] | None:
    graph: Graph = verify(parse_graph(ROPE.replace("START", str(start)).replace("FACTOR", factor)))
    scope = Scope(graph, ())
    for node in graph.nodes:
        scope.process(node)
    return rotation("cos", "sin", ("batch", "seq", 2, 6), 1, scope.nodes, scope.params, scope.types)


def test_rotation() -> None:
    freq = tuple(float(np.float32(f)) for f in (1.0, 0.25, 0.001))
    assert rope_of() == ((*freq, *freq), 1.25)


def test_other_rotations() -> None:
    assert rope_of(start=1) is None
    assert rope_of(factor="1.0") is None
    assert rope_of(factor="-1.0") is None


def test_a_rotation_backwards_has_negative_frequencies() -> None:
    found = rope_of(factor="-1.25")
    assert found is not None and found[0][:2] == (-1.0, -0.25)


def test_values_that_depend_on_inputs_are_no_tables() -> None:
    scope = scope_of("m: f32[batch, seq] = neg(x)\n")
    assert "m" not in scope.tables and "d" in scope.tables
    with pytest.raises(NotATable):
        Tables(scope.nodes, scope.params, scope.types, {"batch": 1, "seq": 4}).at("m", (np.zeros(1, int), np.zeros(1, int)))

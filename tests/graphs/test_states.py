"""States, regions and several outputs: what the verifier refuses, and what they compute."""

from __future__ import annotations

import numpy as np
import pytest

from ferrum.codegen.kv import kept_by_layer
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.passes import fuse_paged, fuse_residual, page_attention, tail
from ferrum.graphs.pipeline import check_finished
from ferrum.graphs.rewrite import P, rewrite
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import faults, verify
from tests.graphs.toys import CONVOLUTION, CROSS, decoder

ATTEND = "{causal=true, operands=(), scale=0.5, softcap=0.0, window=WINDOW}"
HEAD = """graph m
input tokens: i32[tokens]
input q: f32[tokens, 2, 4]
input r: f32[tokens, 1, 4]
state k: f32[1, 4] paged
state v: f32[1, 4] paged
"""


def fault_of(*lines: str, head: str = HEAD, window: int = 0) -> list[str]:
    return faults(parse_graph(head + "\n".join(lines).replace("WINDOW", str(window)) + "\n"))


WRITES = ("k1: paged[1, 4] = write(k, r)", "v1: paged[1, 4] = write(v, r)")
READ = f"y: f32[tokens, 2, 4] = attend(q, k1, v1) {ATTEND}"


def test_a_sound_state() -> None:
    assert fault_of(*WRITES, READ, "return y, k1, v1") == []
    assert fault_of(f"y: f32[tokens, 2, 4] = attend(q, k, v) {ATTEND}", *WRITES, "return y, v1, k1") == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((*WRITES, READ.replace("k1", "k"), "return y, k1, v1"), "reads 'k', an old version of state k"),
        ((*WRITES, READ, "return y, k1"), "state v: its last version 'v1' is not an output"),
        ((*WRITES, READ, "return y, k1, v1, v"), "output 'v' is not the last version"),
        ((*WRITES, READ, "k2: paged[1, 4] = write(k, r)", "return y, k2, v1"), "writes 'k', an old version"),
        ((*WRITES, "p: paged[1, 2] = view(k1) {axis=1, end=2, start=0}", "k2: paged[1, 4] = write(k1, r)",
          "z: f32[tokens, 2, 4] = attend(q, k2, v1) " + ATTEND, "o: f32[tokens, 2, 2] = attend(w, p, p) " + ATTEND,
          "return o, z, k2, v1"), "reads 'p', an old version"),
        (("p: paged[1, 4] = view(k) {axis=1, end=4, start=0}", "k1: paged[1, 4] = write(p, r)", WRITES[1], READ,
          "return y, k1, v1"), "writes 'p', a view of state k"),
        ((*WRITES, "y: paged[1, 4] = neg(k1)", "return y, k1, v1"), "a version of a state, which neg cannot read"),
        (("k1: paged[1, 4] = write(k, q)", WRITES[1], READ, "return y, k1, v1"), "rows ['tokens', 2, 4] into [1, 4]"),
        ((*WRITES, "y: f32[seqs, 1, 4] = read(k1)", "return y, k1, v1"), "k1 is no version of a slot"),
    ],
)  # fmt: skip
def test_versions(lines: tuple[str, ...], words: str) -> None:
    head = HEAD.replace("state k", "input w: f32[tokens, 2, 2]\nstate k", 1)
    found = fault_of(*lines, head=head)
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("state k: f32[1, 4] heap", "kind 'heap' is unknown"),
        ("state k: i64[1, 4] paged", "elements of 'i64'"),
        ("state k: f32[tokens, 4] paged", "fixed dims"),
        ("state k: f32[1, 4] window", "a limit of 0 does not fit kind window"),
        ("state k: f32[1, 4] paged(3)", "a limit of 3 does not fit kind paged"),
    ],
)
def test_declarations(state: str, words: str) -> None:
    found = fault_of(f"{state}\ny: f32[tokens, 2, 4] = neg(q)\nreturn y, k", head=HEAD.replace("state k: f32[1, 4] paged\n", ""))
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(("kept", "window", "sound"), [(4, 4, True), (4, 3, True), (4, 5, False), (4, 0, False)])
def test_a_window_is_not_looked_behind(kept: int, window: int, sound: bool) -> None:
    text = [line.replace("paged", "window") for line in (*WRITES, READ)]
    found = fault_of(*text, "return y, k1, v1", head=HEAD.replace("paged", f"window({kept})"), window=window)
    assert found == [] if sound else all("looks further back than state" in fault for fault in found) and found


def test_a_state_stays_in_its_order_when_a_pass_rewrites() -> None:
    for graph in (CONVOLUTION, CROSS):
        again = rewrite(graph, ((P("neg", P("neg", "a")), lambda s, m: m["a"]),))
        assert print_graph(again) == print_graph(graph)
        assert parse_graph(print_graph(graph)) == graph


REGION = """graph m
input x: f32[seq, 4]
input w: f32[4]
y: f32[seq, 4] = map(x, w)
  region
    input a: f32[]
    input b: f32[]
    c: f32[] = mul(a, b)
    return c
return y
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mul(a, b)", "mul(a, x)", "map region: c = mul: input 'x' is not defined"),
        ("input b: f32[]\n", "input b: f32[4]\n", "single elements of the inputs"),
        ("c: f32[] = mul(a, b)", "c: f32[] = softmax(a) {axis=0}", "softmax in a region of single elements"),
        ("return c\n", "return d\n", "'d'"),
        ("  region\n", "  region\n    return a\n  region\n", "2 regions, expected 1"),
        ("y: f32[seq, 4]", "y: f32[seq, 5]", "declared f32['seq', 5], but it is f32['seq', 4]"),
        ("y: f32[seq, 4] = map", "y: f32[seq, 4], z: f32[seq, 4] = map", "2 outputs, expected 1"),
    ],
)
def test_regions_are_judged(old: str, new: str, words: str) -> None:
    assert old in REGION and faults(parse_graph(REGION)) == []
    found = faults(parse_graph(REGION.replace(old, new)))
    assert any(words in fault for fault in found), found


SCAN = """graph m
input x: f32[seq, 4]
input h: f32[4]
end: f32[4], rows: f32[seq, 4], twice: f32[seq, 4] = scan(h, x) {carried=1, ragged=false, scanned=1}
  region
    input old: f32[4]
    input row: f32[4]
    new: f32[4] = add(old, row)
    half: f32[4] = mul_scalar(old) {value=0.5}
    return new, new, half
low: f32[seq, 1], high: f32[seq, 3] = split(rows) {axis=1, sizes=(1, 3)}
best: f32[seq, 2], at: i32[seq, 2] = topk(high) {k=2}
wide: f32[2 * seq, 3] = cat(high, high) {axis=0}
return end, twice, low, best, at, wide
"""


def test_regions_and_several_outputs_compute() -> None:
    graph = verify(parse_graph(SCAN))
    random = np.random.default_rng(0)
    x, h = random.standard_normal((5, 4)), random.standard_normal(4)
    out = interpret(graph, {"x": x, "h": h}, ArrayWeights({}), np.float64)
    sums = h + np.cumsum(x, 0)
    np.testing.assert_allclose(out["end"], sums[-1])
    np.testing.assert_allclose(out["twice"], 0.5 * np.concatenate([h[None], sums[:-1]]))
    np.testing.assert_allclose(out["low"], sums[:, :1])
    np.testing.assert_allclose(out["best"], -np.sort(-sums[:, 1:], 1)[:, :2])
    np.testing.assert_allclose(np.take_along_axis(sums[:, 1:], out["at"].astype(int), 1), out["best"])
    assert out["wide"].shape == (10, 3)
    mapped = interpret(verify(parse_graph(REGION)), {"x": x, "w": h}, ArrayWeights({}), np.float64)["y"]
    np.testing.assert_allclose(mapped, x * h)


def test_ties_go_to_the_first() -> None:
    graph = parse_graph("graph m\ninput x: f32[1, 4]\nb: f32[1, 2], at: i32[1, 2] = topk(x) {k=2}\nreturn at\n")
    assert interpret(verify(graph), {"x": np.array([[1.0, 2, 2, 2]])}, ArrayWeights({}))["at"].tolist() == [[1, 2]]


# What is not of the one pattern that a kernel takes in is attention to states alone; what no machine can do is a finding.

PAGED = print_graph(page_attention.run(decoder((0, 4))))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("softcap=0.0, window=4", "softcap=3.0, window=4"),
        ("= rope(query.1, positions, freq) {rope_dim=4, rope_scale=1.0, rows=(), seq_axis=0}", "= neg(query.1)"),
        ("rope(key.1, positions, freq) {rope_dim=4", "rope(key.1, positions, half) {rope_dim=2"),
        ("{axis=1, end=24, start=16}", "{axis=1, end=25, start=17}"),
    ],
)
def test_attention_of_another_form_stays_apart(old: str, new: str) -> None:
    text = PAGED.replace("param freq", "param half: f32[1] data(1.0)\nparam freq")
    assert old in text
    paged = verify(parse_graph(text.replace(old, new, 1)))
    fused = verify(fuse_paged.run(paged))
    found = [node for node in fused.nodes if node.op in ("paged_attention", "paged_attend", "attend", "write")]
    assert sorted(node.op for node in found) == ["paged_attend", "paged_attention"]
    random = np.random.default_rng(0)
    arrays = {p.name: random.normal(size=p.shape) for p in paged.params if p.weight is not None}
    weights = ArrayWeights({str(getattr(p.source, "name", p.name)): arrays[p.name] for p in paged.params if p.name in arrays})
    inputs = {"tokens": np.arange(9) % 5, "positions": np.arange(9)}
    name = paged.outputs[0]
    one, other = (interpret(graph, inputs, weights, np.float64, wanted=(name,))[name] for graph in (paged, fused))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_machine_says_what_it_cannot_do() -> None:
    with pytest.raises(UnsupportedOps, match="not causal"):
        fuse_paged.run(parse_graph(PAGED.replace("causal=true", "causal=false", 1)))


def test_layers_may_differ_in_their_heads() -> None:
    graph = verify(page_attention.run(decoder((0, 0), kv_heads=(2, 1))))
    assert [state.shape for state in graph.states] == [(2, 4), (2, 4), (1, 4), (1, 4)]
    fused = check_finished(fuse_paged.run(fuse_residual.run(tail.run(graph))))
    assert [node.attrs["num_kv_heads"] for node in fused.nodes if node.op == "paged_attention"] == [2, 1]


FUSED = print_graph(fuse_paged.run(fuse_residual.run(page_attention.run(decoder((0, 5))))))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('states=("keys.0", "values.0")', 'states=("keys.0", "values.0", "keys.0")', "a state of keys and one of values"),
        ('states=("keys.0", "values.0")', 'states=("keys.0", "none")', "'none' is no state"),
        ('states=("keys.0", "values.0")', 'states=("keys.0", "values.1")', "another window"),
        ('states=("keys.0", "values.0")', 'states=("keys.0", "keys.0")', "is used elsewhere too"),
        ("state keys.1: f32[2, 4] window(5)", "state keys.1: f32[2, 4] window(6)", "another window"),
        ("state keys.1: f32[2, 4] window(5)", "state keys.1: f32[2, 8] window(5)", "other heads"),
    ],
)
def test_fused_attention_has_its_states_for_itself(old: str, new: str, words: str) -> None:
    assert old in FUSED and faults(parse_graph(FUSED)) == []
    assert any(words in fault for fault in faults(parse_graph(FUSED.replace(old, new, 1))))


def test_a_window_is_a_group_of_blocks_of_its_own() -> None:
    """What the graph declares is what a pack's states and the numbers of block tables are made from."""
    kept = kept_by_layer(parse_graph(FUSED.replace("window(5)", "window(9)").replace("window=5", "window=9")))
    assert [(k.group, k.window, k.heads, k.width) for k in kept.values()] == [(0, 0, 2, 4), (1, 9, 2, 4)]


@pytest.mark.parametrize("graph", [CONVOLUTION, CROSS])
def test_states_without_kernels_are_findings(graph: object) -> None:
    with pytest.raises(UnsupportedOps):
        check_finished(fuse_paged.run(graph))  # type: ignore[arg-type]

"""The tail of a step as an op of the graph: what it means, what a wrong one is told, and graphs that have none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.codegen.backend import backend_of
from ferrum.codegen.manifest import program_record
from ferrum.codegen.plan import plan
from ferrum.codegen.target import parse_target
from ferrum.errors import FerrumError
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import fuse_maps, layout, page_attention, tail
from ferrum.graphs.pipeline import check_finished, load_graph
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import faults, verify
from ferrum.pack.launches import SlotArg
from ferrum.pack.sampling import sample_reference
from ferrum.pack.step import INPUTS, OUTPUTS, SAMPLING
from tests.graphs.conftest import GOLDENS
from tests.graphs.toys import decoder

VOCAB = 40
FINISHED = GOLDENS / "stages" / "12-fuse_paged.txt"
SAMPLER = tail.run(
    parse_graph(
        f"""graph sampler
input tokens: i32[tokens]
param table: f32[{VOCAB}, 8] from(table)
x: f32[tokens, 8] = embedding(tokens, table) {{scale=1.0}}
logits: f32[tokens, {VOCAB}] = linear(x, table) {{activation="", has_bias=false, has_residual=false}}
return logits
"""
    )
)
WEIGHTS = ArrayWeights({"table": np.random.default_rng(0).standard_normal((VOCAB, 8)).astype(np.float32)})


def parameters(random: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Any parameters of sampling for ``rows`` rows, with lists of penalties and biases."""
    starts = np.sort(np.concatenate([[0], random.integers(0, 9, rows)])).astype(np.int32)
    lists = max(int(starts[-1]), 1)
    values: dict[str, Any] = {
        "temperature": random.choice([0.0, 0.7, 1.3], rows), "top_k": random.choice([0, 1, 5], rows),
        "top_p": random.choice([1.0, 0.8], rows), "min_p": random.choice([0.0, 0.1], rows),
        "repetition_penalty": random.uniform(0.8, 1.5, rows), "presence_penalty": random.uniform(-1, 1, rows),
        "frequency_penalty": random.uniform(-1, 1, rows), "seed": random.integers(0, 1 << 40, rows),
        "draw": random.integers(0, 9, rows), "num_logprobs": random.integers(-1, 21, rows), "penalty_start": starts,
        "penalty_token": random.permutation(VOCAB)[:lists], "penalty_count": random.integers(0, 3, lists), "bias_start": starts,
        "bias_token": random.integers(0, VOCAB, lists), "bias_value": random.normal(size=lists),
        "use_mask": random.integers(0, 2, rows), "mask": random.integers(1, 1 << 32, (rows, 2)),
    }  # fmt: skip
    return {array.name: np.asarray(values[array.name]).astype(array.dtype) for array in SAMPLING}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 6))
def test_the_op_is_the_reference_on_the_picked_rows(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, rows + 3).astype(np.int32)
    picked = np.sort(random.permutation(len(tokens))[:rows]).astype(np.int32)
    given_ = parameters(random, rows)
    out = interpret(SAMPLER, {"tokens": tokens, "sample_rows": picked, **given_}, WEIGHTS)
    table = WEIGHTS.get(SAMPLER.param("table"))
    wanted = SimpleNamespace(**given_, **{array.name: np.zeros_like(out[array.name]) for array in OUTPUTS})
    sample_reference((table[tokens] @ table.T)[picked], wanted)  # type: ignore[arg-type]
    np.testing.assert_allclose(out["logits"], (table[tokens] @ table.T)[picked], rtol=1e-5, atol=1e-6)
    for array in OUTPUTS:
        assert out[array.name].dtype == array.dtype
        np.testing.assert_allclose(out[array.name], getattr(wanted, array.name), rtol=1e-4, atol=1e-5)


def test_logits_alone_need_no_parameters() -> None:
    inputs = {"tokens": np.array([1, 2, 3], np.int32), "sample_rows": np.array([2], np.int32)}
    assert interpret(SAMPLER, inputs, WEIGHTS, wanted=("logits",))["logits"].shape == (1, VOCAB)
    with pytest.raises(KeyError, match="temperature"):
        interpret(SAMPLER, inputs, WEIGHTS)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("input mask: u32[samples, 2]", "input mask: u32[samples, 1]", "mask is u32['samples', 1], not u32['samples', 2]"),
        ("input seed: u64[samples]", "input seed: i64[samples]", "seed is i64"),
        ("input penalty_start: i32[samples + 1]", "input penalty_start: i32[samples]", "penalty_start is"),
        ("input top_k: i32[samples]", "input top_k: i32[tokens]", "top_k is"),
        ("temperature, top_k", "top_k, temperature", "temperature is i32"),
        (", use_mask, mask)", ", use_mask)", "18 inputs, expected 19"),
        ("= sample(logits,", "= sample(x,", "logits of ['tokens', 8]"),
        ("top_token: i32[samples, 20]", "top_token: i32[samples, 19]", "declared i32"),
    ],
)
def test_a_wrong_tail_is_told(old: str, new: str, words: str) -> None:
    text = print_graph(SAMPLER)
    assert text.count(old) == 1 and not faults(parse_graph(text))
    found = faults(parse_graph(text.replace(old, new)))
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize("last", ["silu", "rms_norm"])
def test_a_decoder_without_a_head_is_a_finding(last: str) -> None:
    node = "silu(last)" if last == "silu" else "rms_norm(last, norm) {eps=1e-06}"
    text = print_graph(page_attention.run(decoder((0,)))).replace("return linear.2", f"z: f32[tokens, 8] = {node}\nreturn z")
    with pytest.raises(UnsupportedOps) as caught:
        tail.run(verify(parse_graph(text.replace("silu(last)", "silu(rms_norm.1)").replace("(last,", "(rms_norm.1,"))))
    assert [finding.what for finding in caught.value.findings] == ["a graph that does not end in a linear"]


def without_tail(graph: Graph) -> Graph:
    """The same layers as a program that gives the rows behind its last norm, as an encoder does."""
    lines = print_graph(graph).splitlines()
    kept = [line for line in lines if "samples" not in line and not line.startswith(("return", "input bias", "input pen"))]
    return verify(parse_graph("\n".join([*kept, "return add.1"]) + "\n"))


@pytest.mark.parametrize("name", ("cpu-avx2", "cuda-sm80", "metal-m1"))
def test_a_graph_without_a_tail_is_planned(name: str) -> None:
    """Its program gives rows: no kernel draws, no array of sampling is asked for, and the rows stay until they are read."""
    target = parse_target(name)
    backend = backend_of(target, "f32", "f32", {})
    whole = layout.run(load_graph(FINISHED), backend.policy())
    graph = layout.run(without_tail(load_graph(FINISHED)), backend.policy())
    made, decoder_ = (plan(g, backend.select(g), target, "f32") for g in (graph, whole))
    assert {call.kernel.stem for call in decoder_.calls} - {call.kernel.stem for call in made.calls} >= {"gather_rows", "sample"}
    assert not any("out_token" in str(launch.args) for launch in made.table.launches)
    assert made.vocab_size == decoder_.vocab_size == VOCAB
    slot = next(launch.args[kernel.args.index("result")] for (call, kernel), launch in
                zip(made.launched, made.table.launches, strict=True) if call.output == "add.1")  # fmt: skip
    assert slot == SlotArg(made.table.logits_slot)
    record, other = program_record(made), program_record(decoder_)
    assert [array.name for array in record.inputs] == ["tokens", "positions", "query_start", "context_len", "block_table"]
    assert record.outputs == [] and record.rows == ["tokens", "seqs"]
    assert (tuple(other.inputs), tuple(other.outputs), other.rows) == (INPUTS, OUTPUTS, ["tokens", "seqs", "samples"])


def test_a_dump_of_a_step_must_draw_tokens() -> None:
    with pytest.raises(UnsupportedOps) as caught:
        check_finished(without_tail(load_graph(FINISHED)))
    assert [finding.what for finding in caught.value.findings] == ["a graph that draws no tokens"]
    text = FINISHED.read_text(encoding="utf-8")
    other = text.replace("param embed", "param other.weight: f32[39, 24] from(other)\nparam embed", 1)
    other = other.replace("embedding(tokens, embed_tokens.weight)", "embedding(tokens, other.weight)")
    with pytest.raises(FerrumError, match="other tokens than the 39"):
        check_finished(verify(parse_graph(other)))


def chosen_ids(rows: int) -> Graph:
    """A step that looks some tokens up as others, in a table of ``rows``, and whose logits have a matrix of their own."""
    graph = parse_graph(
        f"""graph chosen
input tokens: i32[tokens]
param table: f32[{rows}, 8] from(table)
param head: f32[{VOCAB}, 8] from(head)
pad: i32[] = full() {{value=39.0}}
one: i32[] = full() {{value=1.0}}
same: bool[tokens] = eq(tokens, pad)
ids: i32[tokens] = where(same, one, tokens)
x: f32[tokens, 8] = embedding(ids, table) {{scale=1.0}}
logits: f32[tokens, {VOCAB}] = linear(x, head) {{activation="", has_bias=false, has_residual=false}}
return logits
"""
    )
    return fuse_maps.run(tail.run(graph))


def wide_table(rows: int) -> Graph:
    """The same where the tokens are looked up as they are: a table may have rows for what no answer holds, pictures say."""
    return parse_graph(print_graph(chosen_ids(rows)).replace("embedding(ids,", "embedding(tokens,"))


def test_the_vocabulary_of_tokens_that_are_looked_up_as_others_is_that_of_the_logits() -> None:
    target = parse_target("cpu-avx2")
    backend = backend_of(target, "f32", "f32", {})
    graph = layout.run(chosen_ids(VOCAB), backend.policy())
    assert plan(graph, backend.select(graph), target, "f32").vocab_size == VOCAB
    assert not tail.form_findings(wide_table(VOCAB + 8)) and tail.form_findings(wide_table(VOCAB - 1))
    assert not tail.form_findings(chosen_ids(VOCAB)) and not tail.form_findings(chosen_ids(VOCAB + 8))
    found = [finding.what for finding in tail.form_findings(chosen_ids(VOCAB - 1))]
    assert found == ["logits of other tokens than the 39 of the embedding"]

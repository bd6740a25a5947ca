"""Steps: whatever the chunks, the company and the detours of a sequence, it computes what it computes alone and at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.graphs.interpret import Array, ArrayWeights, interpret, reference_logits
from ferrum.graphs.ir import Graph, State
from ferrum.graphs.passes import fuse_paged, fuse_residual, page_attention
from ferrum.graphs.step_states import StepStates
from ferrum.graphs.verify import verify
from tests.graphs.toys import (
    CONVOLUTION,
    CROSS,
    ENCODE,
    VOCAB,
    advance,
    arrays_of,
    decoder,
    encode,
    plain_convolution,
    plain_cross,
)

SEQS = (7, 3, 5)
WINDOW = 4


@dataclass(frozen=True)
class Toy:
    """A graph of a step, its weights, what a sequence of tokens gives, and what happens when one begins."""

    graph: Graph
    weights: ArrayWeights
    plain: Callable[[Sequence[int], int], Array]
    begin: Callable[[StepStates, int], None]

    def states(self) -> StepStates:
        return StepStates(self.graph.states, np.float64)

    def start(self, states: StepStates, seq: int) -> None:
        states.take(seq)
        self.begin(states, seq)


def decoder_toy(windows: Sequence[int]) -> Toy:
    stateless = decoder(windows)
    weights = ArrayWeights(arrays_of(stateless))

    def plain(tokens: Sequence[int], _: int) -> Array:
        return np.asarray(interpret(stateless, {"tokens": np.array([tokens])}, weights, np.float64)["logits"][0])

    return Toy(verify(page_attention.run(stateless)), weights, plain, lambda states, seq: None)


def heard(seq: int) -> Array:
    return np.random.default_rng(seq).standard_normal((1 + seq % 5, 8))


def cross_toy() -> Toy:
    arrays = arrays_of(ENCODE, CROSS)
    weights = ArrayWeights(arrays)
    return Toy(
        CROSS,
        weights,
        lambda tokens, seq: plain_cross(arrays, tokens, heard(seq)),
        lambda states, seq: encode(weights, states, {seq: heard(seq)}),
    )


def convolution_toy() -> Toy:
    arrays = arrays_of(CONVOLUTION)
    return Toy(CONVOLUTION, ArrayWeights(arrays), lambda tokens, seq: plain_convolution(arrays, tokens), lambda states, seq: None)


TOYS = {
    "decoder": decoder_toy((0, 0)),
    "window": decoder_toy((WINDOW, 0, WINDOW)),
    "convolution": convolution_toy(),
    "cross": cross_toy(),
}
TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14)
PROMPTS = st.lists(TOKENS, min_size=1, max_size=3)
TOY = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)


@TOY
@settings(max_examples=40, deadline=None)
@given(data=st.data(), prompts=PROMPTS)
def test_any_chunks_give_the_stateless_values(toy: Toy, data: st.DataObject, prompts: list[list[int]]) -> None:
    states, todo = toy.states(), dict(zip(SEQS, prompts, strict=False))
    got: dict[int, list[Array]] = {seq: [] for seq in todo}
    while any(todo.values()):
        ready = [seq for seq, rest in todo.items() if rest]
        chosen = data.draw(st.lists(st.sampled_from(ready), min_size=1, unique=True))
        parts = {seq: todo[seq][: data.draw(st.integers(1, len(todo[seq])))] for seq in chosen}
        for seq in parts:
            if seq not in states.tokens:
                toy.start(states, seq)
        for seq, rows in advance(toy.graph, toy.weights, states, parts).items():
            got[seq].append(rows)
            todo[seq] = todo[seq][len(parts[seq]) :]
    for seq, prompt in zip(SEQS, prompts, strict=False):
        want = toy.plain(prompt, seq)
        np.testing.assert_allclose(np.concatenate(got[seq]), want, rtol=1e-9, atol=1e-9)


@TOY
@settings(max_examples=25, deadline=None)
@given(data=st.data(), prompts=PROMPTS)
def test_row_by_row_the_bits_are_those_of_a_token_alone(toy: Toy, data: st.DataObject, prompts: list[list[int]]) -> None:
    alone: dict[int, Array] = {}
    for seq, prompt in zip(SEQS, prompts, strict=False):
        states = toy.states()
        toy.start(states, seq)
        alone[seq] = np.concatenate([advance(toy.graph, toy.weights, states, {seq: [t]}, True)[seq] for t in prompt])
    states = toy.states()
    for seq in alone:
        toy.start(states, seq)
    cut = {seq: data.draw(st.integers(1, len(prompt))) for seq, prompt in zip(SEQS, prompts, strict=False)}
    first = {seq: prompt[: cut[seq]] for seq, prompt in zip(SEQS, prompts, strict=False)}
    rest = {seq: prompt[cut[seq] :] for seq, prompt in zip(SEQS, prompts, strict=False) if prompt[cut[seq] :]}
    rows = advance(toy.graph, toy.weights, states, first, True)
    more = advance(toy.graph, toy.weights, states, rest, True) if rest else {}
    for seq, want in alone.items():
        got = np.concatenate([rows[seq], *([more[seq]] if seq in more else [])])
        assert got.tobytes() == want.tobytes()


@TOY
@settings(max_examples=25, deadline=None)
@given(data=st.data(), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=3, max_size=14))
def test_detours_leave_no_trace(toy: Toy, data: st.DataObject, prompt: list[int]) -> None:
    """A checkpoint, put back after other tokens, in the same sequence, in another one, or by way of bytes; and a copy."""
    states = toy.states()
    cut = data.draw(st.integers(1, len(prompt) - 1))
    toy.start(states, 7)
    advance(toy.graph, toy.weights, states, {7: prompt[:cut]})
    saved, written = states.checkpoint(7), states.to_bytes(7)
    states.copy(7, 12)
    advance(toy.graph, toy.weights, states, {7: [1, 2, 3]})
    states.restore(7, saved, cut)
    states.restore(17, saved, cut)
    states.from_bytes(22, written, cut)
    rows = advance(toy.graph, toy.weights, states, {seq: prompt[cut:] for seq in (7, 12, 17, 22)})
    for got in rows.values():
        np.testing.assert_allclose(got, toy.plain(prompt, 7)[cut:], rtol=1e-9, atol=1e-9)


@TOY
@settings(max_examples=25, deadline=None)
@given(data=st.data(), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=3, max_size=14))
def test_tokens_are_taken_back(toy: Toy, data: st.DataObject, prompt: list[int]) -> None:
    """Where ``can_truncate`` says so: the last step always without slots; else nothing has changed."""
    states = toy.states()
    toy.start(states, 7)
    first = data.draw(st.integers(1, len(prompt) - 1))
    advance(toy.graph, toy.weights, states, {7: prompt[:first]})
    advance(toy.graph, toy.weights, states, {7: [4] * data.draw(st.integers(1, 6))})
    slots = any(state.kind == "slot" for state in toy.graph.states)
    back = data.draw(st.integers(0, states.tokens[7]))
    if not states.can_truncate(7, back):
        assert slots or back < first
        held = states.to_bytes(7)
        with pytest.raises(ValueError, match="cannot be cut back"):
            states.truncate(7, back)
        assert states.to_bytes(7) == held
        return
    assert back in (0, states.tokens[7]) or not slots
    states.truncate(7, back)
    assert states.tokens[7] == back
    tokens = (prompt[:first] + [4] * 6)[:back] + prompt
    rows = advance(toy.graph, toy.weights, states, {7: prompt})[7]
    np.testing.assert_allclose(rows, toy.plain(tokens, 7)[back:], rtol=1e-9, atol=1e-9)


def test_a_window_holds_few_rows() -> None:
    toy = TOYS["window"]
    states = toy.states()
    toy.start(states, 1)
    for token in range(20):
        advance(toy.graph, toy.weights, states, {1: [token]})
        assert len(states.states["keys.0"].read(1)[1]) <= WINDOW
        assert len(states.states["keys.1"].read(1)[1]) == token + 1
    one = states.states["keys.0"].nbytes(1, 1)
    assert states.states["keys.0"].nbytes(3, 1000) == 3 * WINDOW * one and states.states["keys.1"].nbytes(3, 1000) == 3000 * one
    assert states.nbytes(3, 1000) == sum(state.nbytes(3, 1000) for state in states.states.values())


def test_a_fixed_state_is_bounded_and_a_slot_begins_at_zero() -> None:
    toy = TOYS["cross"]
    states = toy.states()
    states.take(1)
    with pytest.raises(ValueError, match="takes 5 rows"):
        encode(toy.weights, states, {1: np.zeros((6, 8))})
    with pytest.raises(ValueError, match="has state"):
        states.take(1)
    states = TOYS["convolution"].states()
    states.take(1)
    assert not states.states["past"].read(1)[1].any()
    states.drop(1)
    assert not states.tokens and not states.states["past"].held


@pytest.mark.parametrize("kind", ["paged", "window", "slot", "fixed"])
def test_bytes_of_something_else_are_refused(kind: str) -> None:
    limit = 4 if kind in ("window", "fixed") else 0
    (state,) = StepStates([State("s", kind, "f32", (2, 3), limit)]).states.values()
    state.take(0)
    state.write(0, np.ones((1, 2, 3)), 1)
    good = state.checkpoint(0).to_bytes()
    state.restore(1, state.from_bytes(good))
    assert state.checkpoint(1).to_bytes() == good
    for bad in (b"", good[:-1], good + b"\0", good[:16] + b"\2" + good[17:]):
        with pytest.raises(ValueError, match="state s"):
            state.from_bytes(bad)


@pytest.mark.parametrize("windows", [(0, 0), (WINDOW, 0)])
def test_the_fused_form_computes_the_same(windows: tuple[int, ...]) -> None:
    paged = verify(fuse_residual.run(page_attention.run(decoder(windows))))
    fused = verify(fuse_paged.run(paged), paged=True)
    weights, tokens = ArrayWeights(arrays_of(paged)), [3, 1, 4, 1, 5, 9, 2, 6]
    assert fused.states == paged.states and fused.outputs == paged.outputs[:1]
    for dtype in (np.float32, np.float64):
        want, got = (reference_logits(graph, tokens, weights, dtype) for graph in (paged, fused))
        assert want.tobytes() == got.tobytes()

"""Slots, fixed places, windows and blocks through the engine: whatever happens to a request, its bits are those it has alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.state_groups import PASSED
from ferrum.errors import FerrumError
from tests.engine.listener import LISTENER, WINDOW, plain_listener
from tests.engine.oracle import check_empty, drain
from tests.engine.state_models import (
    MODELS,
    OverlappingInterpreter,
    Setup,
    add,
    alone,
    frames,
    greedy,
    plain_logits,
    prompt_of,
    said,
    sampled,
)
from tests.graphs import toys
from tests.graphs.toys import FRAMES, HIDDEN

ALL = pytest.mark.parametrize("model", MODELS)
PROMPT = prompt_of(3, 30)


def ask(engine: Engine, model: str, prompt: list[int] = PROMPT, heard: int = 1, **more: object) -> int:
    """One request to its end, as alone; the tokens that were cached."""
    params = greedy()
    add(engine, model, "x", prompt, heard, params, **more)
    events = drain(engine)["x", 0]
    assert said(events) == alone(model, prompt, heard, params)
    check_empty(engine)
    return events[0].cached_tokens


@ALL
def test_alone_it_says_what_the_stateless_model_says(model: str) -> None:
    history = list(PROMPT)
    for token, logprob, top in alone(model, PROMPT, 2, greedy()):
        logits = plain_logits(model, history, 2)[-1]
        logprobs = logits - np.log(np.exp(logits).sum())
        assert token == logits.argmax() == top[0][0]
        assert logprob == pytest.approx(logprobs[token], abs=1e-4)
        assert [p for _, p in top] == pytest.approx([logprobs[t] for t, _ in top], abs=1e-4)
        history.append(token)


@ALL
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_company_change_nothing(model: str, chunk: int) -> None:
    engine = Setup(model, EngineOptions(max_prefill_chunk=chunk)).engine()
    prompts = [prompt_of(seed, 3 + 9 * seed) for seed in range(5)]
    params = greedy()
    for seed, prompt in enumerate(prompts):
        add(engine, model, str(seed), prompt, seed, params)
    found = drain(engine)
    for seed, prompt in enumerate(prompts):
        assert said(found[str(seed), 0]) == alone(model, prompt, seed, params)
    check_empty(engine)


@ALL
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preemption_changes_nothing(model: str, prefix_cache: bool) -> None:
    setup = Setup(model, EngineOptions(prefix_cache=prefix_cache), num_blocks=15, checkpoints=2, window_blocks=64)
    engine, params = setup.engine(), greedy(24)
    prompts = [prompt_of(seed % 3, 5 + seed) for seed in range(6)]
    for seed, prompt in enumerate(prompts):
        add(engine, model, str(seed), prompt, seed, params)
    found = drain(engine)
    assert engine.stats().num_preemptions > 2
    for seed, prompt in enumerate(prompts):
        assert said(found[str(seed), 0]) == alone(model, prompt, seed, params)
    check_empty(engine)


@ALL
def test_choices_share_what_they_can(model: str) -> None:
    for prefix_cache in (True, False):
        engine = Setup(model, EngineOptions(prefix_cache=prefix_cache)).engine()
        params = sampled(6, seed=5, n=3)
        add(engine, model, "x", PROMPT, 1, params)
        found = drain(engine)
        assert [found["x", i][0].cached_tokens for i in range(3)] == [0, 28, 28]
        for index in range(3):
            assert said(found["x", index]) == alone(model, PROMPT, 1, params, index)
        check_empty(engine)


def test_a_prefix_is_reused_as_far_as_a_checkpoint_goes() -> None:
    engine = Setup("convolution", checkpoint=8).engine()
    assert ask(engine, "convolution") == 0
    assert ask(engine, "convolution") == 28, "the prompt's end"
    assert ask(engine, "convolution", PROMPT[:23] + [1, 1]) == 16, "not 20, though these blocks are cached"
    assert ask(engine, "convolution", PROMPT[:25] + [1, 1]) == 24
    turn = [*PROMPT, *(token for token, _, _ in alone("convolution", PROMPT, 1, greedy())), 4, 4]
    assert ask(engine, "convolution", turn) == 32, "made while the answer grew"
    assert ask(Setup("decoder").engine(), "decoder") == 0


def test_without_an_interval_only_the_prompts_end_is_kept() -> None:
    engine = Setup("convolution", checkpoint=0).engine()
    assert [ask(engine, "convolution", prompt) for prompt in (PROMPT, PROMPT[:20], PROMPT, PROMPT[:20], [*PROMPT, 5])] == [
        0, 0, 28, 16, 28,
    ]  # fmt: skip


def test_the_least_recently_used_checkpoint_goes_first_and_a_miss_is_computed() -> None:
    engine = Setup("convolution", checkpoint=0, checkpoints=1, max_seqs=1).engine()
    other = prompt_of(9, 14)
    assert [ask(engine, "convolution", prompt) for prompt in (PROMPT, PROMPT, other, PROMPT, other)] == [0, 28, 0, 0, 0]
    states = engine.scheduler.states
    assert states is not None and states.groups[0].places.num_known == 1 and states.groups[0].places.pool.num_blocks == 2


def test_the_last_place_is_used_up_by_who_goes_on_from_it() -> None:
    """No place but the running sequence's own: the copy cannot be kept, yet it is used."""
    engine = Setup("convolution", checkpoint=0, checkpoints=0, max_seqs=2).engine()
    params = greedy()
    add(engine, "convolution", "a", PROMPT, 0, params)
    drain(engine)
    add(engine, "convolution", "b", prompt_of(4, 2), 0, greedy(30))
    engine.step()
    add(engine, "convolution", "c", PROMPT, 0, params)
    found = drain(engine)
    assert found["c", 0][0].cached_tokens == 28 and said(found["c", 0]) == alone("convolution", PROMPT, 0, params)
    check_empty(engine)


def test_a_checkpoint_goes_with_its_block() -> None:
    engine = Setup("convolution", num_blocks=10, checkpoint=4).engine()
    assert ask(engine, "convolution") == 0
    states = engine.scheduler.states
    assert states is not None and states.groups[0].places.num_known == 9
    assert ask(engine, "convolution", prompt_of(7, 18)) == 0
    assert states.groups[0].places.num_known == engine.scheduler.cache.num_entries < 10
    engine.scheduler.cache.clear()
    assert states.groups[0].places.num_known == 0
    check_empty(engine)


def test_a_fixed_place_is_filled_once_for_equal_inputs() -> None:
    engine = Setup("cross", max_seqs=4).engine()
    filled: list[int] = []
    fill = engine.executor.fill_place  # type: ignore[attr-defined]
    engine.executor.fill_place = lambda group, place, inputs: (filled.append(place), fill(group, place, inputs))  # type: ignore[attr-defined]
    params = sampled(4, seed=1, n=3)
    add(engine, "cross", "x", PROMPT, 1, params)
    drain(engine)
    assert len(filled) == 1
    assert ask(engine, "cross") == 28 and len(filled) == 1
    assert ask(engine, "cross", heard=2) == 0 and len(filled) == 2, "nothing of other inputs is shared"
    assert ask(engine, "cross", heard=1, salt="someone else") == 0 and len(filled) == 3


def test_without_inputs_a_fixed_place_has_no_rows() -> None:
    engine = Setup("cross", max_seqs=1).engine()
    assert ask(engine, "cross") == 0
    engine.add("x", PROMPT, greedy(2))
    assert drain(engine)["x", 0][0].cached_tokens == 0
    weights = toys.arrays_of(toys.ENCODE, LISTENER)
    wanted = plain_listener(weights, PROMPT, np.empty((0, HIDDEN)))
    np.testing.assert_allclose(engine.logits(PROMPT), wanted, rtol=1e-4, atol=1e-4)
    check_empty(engine)


@pytest.mark.parametrize("model", ["decoder", "window", "convolution"])
def test_logits_of_every_token_between_requests(model: str) -> None:
    engine = Setup(model, max_tokens=7).engine()
    for _ in range(2):
        ask(engine, model)
        np.testing.assert_allclose(engine.logits(PROMPT), plain_logits(model, PROMPT, 0), rtol=1e-4, atol=1e-4)
        check_empty(engine)


def test_inputs_that_do_not_fit_are_refused() -> None:
    engine = Setup("cross").engine()
    rows = frames(1)
    for inputs in ({"sound": rows}, {"frames": rows, "more": rows}, {"frames": rows[0]}, {"frames": rows[:, 1:]},
                   {"frames": np.zeros((FRAMES + 1, HIDDEN))}, {"frames": rows[:0]}, {"frames": [["a"] * HIDDEN]}):  # fmt: skip
        with pytest.raises(FerrumError) as caught:
            engine.add("x", PROMPT, greedy(), inputs=inputs)  # type: ignore[arg-type]
        assert caught.value.where == "inputs" and not engine.has_work
    with pytest.raises(FerrumError, match="brings no inputs, not frames"):
        Setup("decoder").engine().add("x", PROMPT, greedy(), inputs={"frames": rows})


def test_an_abort_gives_every_place_back() -> None:
    for model in MODELS:
        for steps in range(6):
            engine = Setup(model, EngineOptions(max_prefill_chunk=7), overlapping=True).engine()
            for name in "abc":
                add(engine, model, name, PROMPT, ord(name), sampled(9, seed=1, n=2))
            for _ in range(steps):
                engine.step()
            for name in "abc":
                engine.abort(name)
            assert engine.step() == []
            check_empty(engine)


@ALL
def test_steps_that_are_started_ahead_change_nothing(model: str) -> None:
    setup = Setup(model, overlapping=True, checkpoint=8)
    engine = setup.engine()
    for seed in range(3):
        add(engine, model, str(seed), PROMPT[: 9 + 8 * seed], seed, greedy(9 + 5 * seed))
    found = drain(engine)
    for seed in range(3):
        assert said(found[str(seed), 0]) == alone(model, PROMPT[: 9 + 8 * seed], seed, greedy(9 + 5 * seed))
    assert isinstance(engine.executor, OverlappingInterpreter) and engine.executor.num_ahead > 5
    drain(engine)
    longer = [*PROMPT[:25], *(said_[0] for said_ in said(found["2", 0])), 3, 3]
    add(engine, model, "x", longer, 2, greedy())
    events = drain(engine)["x", 0]
    assert said(events) == alone(model, longer, 2, greedy()) and events[0].cached_tokens >= 40
    check_empty(engine)


def test_a_window_needs_few_blocks_however_long_the_prompt() -> None:
    engine = Setup("window", window_blocks=3, max_seqs=1).engine()
    assert engine.scheduler.max_chunk == 4, "with the 4 tokens that it sees before itself it touches 3 blocks at most"
    (window,) = engine.scheduler.states.groups  # type: ignore[union-attr]
    params = greedy()
    add(engine, "window", "x", PROMPT, 0, params)
    events = []
    while engine.has_work:
        events += engine.step()
        assert window.places.pool.num_used <= 3
        for sequence in engine.scheduler.running:
            live = [index for index, place in enumerate(sequence.tables[0]) if place != PASSED]
            oldest = max(0, sequence.num_computed - WINDOW + 1) // 4
            assert live == list(range(oldest, -(-sequence.num_computed // 4)))
    assert said(events) == alone("window", PROMPT, 0, params)
    check_empty(engine)


def test_a_prefix_is_reused_where_its_window_is_still_there() -> None:
    """Of the prompt's 7 cached blocks those of the window are gone but for the last ones."""
    engine = Setup("window", window_blocks=5, max_seqs=1).engine()
    assert ask(engine, "window") == 0
    assert ask(engine, "window") == 28
    assert ask(engine, "window", [*PROMPT[:13], 1, 1]) == 0, "blocks are cached, what the window saw is not"
    assert ask(Setup("window", max_seqs=1).engine(), "window") == 0
    roomy = Setup("window", window_blocks=64, max_seqs=1).engine()
    assert [ask(roomy, "window"), ask(roomy, "window", [*PROMPT[:13], 1, 1])] == [0, 12]


def test_few_places_let_few_run() -> None:
    executor = Setup("convolution").engine().executor
    (slots,) = executor.limits.groups
    executor.limits = replace(executor.limits, groups=(replace(slots, count=2),))
    engine = Engine(executor)
    for name in "abc":
        add(engine, "convolution", name, PROMPT, 0, greedy())
    engine.step()
    assert [s.request_id for s in engine.scheduler.running] == ["a", "b"]
    found = drain(engine)
    assert len(found) == 3 and said(found["c", 0]) == alone("convolution", PROMPT, 0, greedy())
    check_empty(engine)


def test_a_copied_block_holds_the_same_rows() -> None:
    engine = Setup("decoder").engine()
    add(engine, "decoder", "x", PROMPT, 0, greedy())
    engine.step()
    (sequence,) = engine.scheduler.running
    spare = engine.scheduler.pool.take()
    engine.executor.copy_block(sequence.blocks[0], spare)
    sequence.blocks[0] = spare
    assert [token for token, _, _ in alone("decoder", PROMPT, 0, greedy())][1:] == [e.token for e in drain(engine)["x", 0]]

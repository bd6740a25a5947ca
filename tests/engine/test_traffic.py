"""Random traffic over the null device: whatever the batching, outputs are those of each request alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferrum.devices.base import StateGroup, window_blocks
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.sequence import State
from ferrum.engine.state_groups import PASSED
from tests.engine.oracle import VOCAB, check_empty, expected, new_engine, tokens_of

EOS = (0, 5)
STREAMS = [np.random.default_rng(i).integers(0, VOCAB, 80).tolist() for i in range(3)]


@dataclass(frozen=True)
class Traffic:
    arrival: int
    prompt: list[int]
    params: SamplingParams
    abort_after: int | None
    salt: str


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    kind = draw(st.sampled_from(["greedy", "greedy", "plain", "cut", "penalties"]))
    values: dict[str, object] = {"temperature": 0.0}
    if kind != "greedy":
        values = {"temperature": draw(st.sampled_from([0.3, 1.0, 2.0])), "seed": draw(st.integers(0, 2**64 - 1))}
    if kind == "cut":
        values |= {"top_k": draw(st.integers(0, 12)), "top_p": draw(st.sampled_from([0.2, 0.9, 1.0])), "min_p": 0.05}
    if kind == "penalties":
        values |= {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": draw(st.sampled_from([-0.4, 0.7]))}
        values |= {"logit_bias": {3: 4.0, 9: -100.0}}
    return SamplingParams(
        max_tokens=draw(st.integers(1, 24)),
        min_tokens=draw(st.integers(0, 1)),
        ignore_eos=draw(st.booleans()),
        stop_token_ids=draw(st.sampled_from([(), (7,)])),
        n=draw(st.sampled_from([1, 1, 1, 3])),
        **values,  # type: ignore[arg-type]
    )


@st.composite
def requests(draw: st.DrawFn) -> Traffic:
    stream = draw(st.sampled_from(STREAMS))
    prompt = stream[: draw(st.integers(1, 50))] + draw(st.lists(st.integers(0, VOCAB - 1), max_size=3))
    abort_after = draw(st.sampled_from([None, None, None, 0, 1, 5]))
    return Traffic(draw(st.integers(0, 30)), prompt, draw(sampling_params()), abort_after, draw(st.sampled_from(["", "", "k"])))


@st.composite
def engines(draw: st.DrawFn, longest: int) -> Engine:
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    needed = -(-longest // block_size)
    max_seqs = draw(st.integers(1, 6))
    windows = draw(st.lists(st.sampled_from([1, 2, 5, 16, 33, 200]), max_size=2, unique=True))
    options = EngineOptions(
        max_prefill_chunk=draw(st.sampled_from([0, 1, 7])), prefix_cache=draw(st.booleans()), max_queue=10_000
    )
    return new_engine(
        options,
        EOS,
        block_size=block_size,
        num_blocks=needed + draw(st.sampled_from([0, 1, needed // 2, 4 * needed])),
        max_blocks_per_seq=needed,
        max_tokens=draw(st.sampled_from([1, 7, 64, 512])),
        max_seqs=max_seqs,
        max_samples=draw(st.integers(1, max_seqs)),
        max_adjust=draw(st.sampled_from([VOCAB, 3 * VOCAB])),
        groups=tuple(draw(window_groups(window, block_size, needed)) for window in windows),
    )


@st.composite
def window_groups(draw: st.DrawFn, window: int, block_size: int, needed: int) -> StateGroup:
    """From what one token and its window need to more than all sequences have."""
    least = min(needed, window_blocks(window, 1, block_size))
    return StateGroup("window", least + draw(st.sampled_from([0, 1, needed // 2, 8 * needed])), window=window)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Engine, list[Traffic]]:
    traffic = draw(st.lists(requests(), min_size=1, max_size=9))
    longest = max(len(t.prompt) + (t.params.max_tokens or 0) for t in traffic)
    return draw(engines(longest)), traffic


def check_windows(engine: Engine) -> None:
    """No sequence holds more of a window than its next steps need."""
    for sequence in engine.scheduler.running:
        for table, group in zip(sequence.tables, engine.scheduler.limits.groups, strict=True):
            most = window_blocks(group.window, engine.scheduler.max_chunk, engine.scheduler.block_size)
            assert sum(place != PASSED for place in table) <= min(most, group.count)


def run(engine: Engine, traffic: list[Traffic]) -> dict[tuple[str, int], list[int]]:
    """All outputs up to their ends or aborts, with the invariants that hold between steps."""
    found: dict[tuple[str, int], list[int]] = {}
    reasons: dict[tuple[str, int], str] = {}
    for now in range(50_000):
        for name, item in enumerate(traffic):
            if item.arrival == now:
                engine.add(str(name), item.prompt, item.params, salt=item.salt)
                if item.abort_after == 0:
                    assert engine.abort(str(name))
        running = list(engine.scheduler.running)
        events = engine.step()
        if running:
            assert running[0].state is not State.WAITING, "the oldest was preempted"
        for event in events:
            key = event.request_id, event.index
            assert not reasons.get(key), "an event after the end"
            found.setdefault(key, []).append(event.token)
            reasons[key] = event.finish_reason
            limit = traffic[int(event.request_id)].abort_after
            if limit and len(found[key]) == limit and not event.finish_reason:
                engine.abort(*key)
                reasons[key] = "abort"
        check_windows(engine)
        for queue in (engine.scheduler.running, engine.scheduler.waiting):
            arrivals = [s.arrival for s in queue]
            assert arrivals == sorted(arrivals)
        if not engine.has_work and now >= 30:
            return found
    raise AssertionError("starved")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_outputs_do_not_depend_on_the_traffic(case: tuple[Engine, list[Traffic]]) -> None:
    engine, traffic = case
    found = run(engine, traffic)
    for name, item in enumerate(traffic):
        for index in range(item.params.n):
            tokens, _ = expected(item.prompt, item.params, item.params.max_tokens or 0, EOS, index)
            if item.abort_after is not None:
                tokens = tokens[: item.abort_after]
            assert found.get((str(name), index), []) == tokens
    check_empty(engine)


def test_preemption_happens_and_changes_nothing() -> None:
    prompts = [STREAMS[i % 3][: 5 + i] for i in range(8)]
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    for prefix_cache in (True, False):
        engine = new_engine(EngineOptions(prefix_cache=prefix_cache), num_blocks=14, max_blocks_per_seq=11)
        for i, prompt in enumerate(prompts):
            engine.add(str(i), prompt, params)
        found: dict[str, list[int]] = {}
        while engine.has_work:
            for event in engine.step():
                found.setdefault(event.request_id, []).append(event.token)
        assert engine.stats().num_preemptions > 3
        for i, prompt in enumerate(prompts):
            assert found[str(i)] == expected(prompt, params, 30)[0]
        check_empty(engine)


def test_seeded_sampling_repeats_in_any_batch() -> None:
    params = SamplingParams(temperature=1.5, seed=-7, max_tokens=20, top_p=0.9)
    alone = new_engine()
    alone.add("a", [1, 2, 3], params)
    one = tokens_of([e for _ in range(30) for e in alone.step()])
    crowd = new_engine(max_tokens=7, num_blocks=16, max_blocks_per_seq=16)
    for i in range(6):
        crowd.add(f"x{i}", [i, 9], SamplingParams(max_tokens=15))
    crowd.add("a", [1, 2, 3], params)
    found = []
    while crowd.has_work:
        found += [e.token for e in crowd.step() if e.request_id == "a"]
    assert len(one) == 20 and found == one

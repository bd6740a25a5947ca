"""Random traffic over states of every kind, and faults of the engine that it must find."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferrum.engine import engine as engine_module
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.places import Places
from ferrum.engine.prefix_cache import PrefixCache
from ferrum.engine.scheduler import Scheduler
from ferrum.engine.sequence import Sequence
from ferrum.engine.state_groups import PASSED, Copy, Fill, SlotPlaces, StatePlaces, WindowPlaces
from tests.engine.listener import WINDOW
from tests.engine.oracle import check_empty, drain
from tests.engine.state_models import MODELS, Said, Setup, add, alone, greedy, prompt_of, said, sampled

WINDOW_BLOCKS = {1: WINDOW + 1, 4: 3}  # the fewest that a token and what it sees may need
LAST = 30  # step in which a request may arrive
STREAMS = [prompt_of(seed, 40) for seed in range(2)]


@dataclass(frozen=True)
class Item:
    arrival: int
    prompt: list[int]
    heard: int
    params: SamplingParams
    abort_after: int | None
    salt: str


@st.composite
def items(draw: st.DrawFn) -> Item:
    prompt = draw(st.sampled_from(STREAMS))[: draw(st.integers(1, 34))] + draw(st.sampled_from([[], [1], [2, 3]]))
    params = draw(st.sampled_from([greedy(9), greedy(3), sampled(6, seed=1), sampled(6, seed=1, n=3)]))
    abort_after = draw(st.sampled_from([None, None, None, 0, 1, 4]))
    return Item(draw(st.integers(0, 12)), prompt, draw(st.integers(1, 2)), params, abort_after, draw(st.sampled_from(["", "k"])))


@st.composite
def cases(draw: st.DrawFn, model: str) -> tuple[Setup, list[Item]]:
    traffic = draw(st.lists(items(), min_size=1, max_size=6))
    block_size = draw(st.sampled_from([1, 4]))
    needed = -(-max(len(i.prompt) + (i.params.max_tokens or 0) for i in traffic) // block_size)
    max_seqs = draw(st.integers(1, 4))
    setup = Setup(
        model,
        EngineOptions(
            max_prefill_chunk=draw(st.sampled_from([0, 1, 7])), prefix_cache=draw(st.sampled_from([True, True, False]))
        ),
        checkpoint=draw(st.sampled_from([0, 3, 8])),
        checkpoints=draw(st.sampled_from([0, 1, 8])),
        window_blocks=draw(st.sampled_from([0, WINDOW_BLOCKS[block_size], 2 * WINDOW_BLOCKS[block_size]])),
        overlapping=draw(st.booleans()),
        block_size=block_size,
        num_blocks=needed + draw(st.sampled_from([0, needed // 4, 4 * needed])),
        max_seqs=max_seqs,
        max_samples=draw(st.integers(1, max_seqs)),
        max_tokens=draw(st.sampled_from([5, 64])),
    )
    return setup, traffic


def check_between_steps(engine: Engine) -> None:
    """Every running sequence has one place in each group, nobody else has any, and each checkpoint follows a cached block."""
    scheduler = engine.scheduler
    if scheduler.states is None:
        return
    for index, group in enumerate(scheduler.states.groups):
        places, tables = group.places, [sequence.tables[index] for sequence in scheduler.running]
        held = [place for table in tables for place in table if place != PASSED]
        assert places.pool.references == [held.count(place) for place in range(places.pool.num_blocks)]
        assert all(len(set(table) - {PASSED}) <= group.need(s) for table, s in zip(tables, scheduler.running, strict=True))
        assert scheduler.states.reserved[index] == sum(map(group.need, scheduler.running)) <= places.pool.num_blocks
        if group.group.kind == "slot":
            assert len(set(held)) == len(held) and places.num_known == places.pool.num_idle
        if group.group.kind != "fixed":
            assert all(block in scheduler.cache._digest_of for block in places._places)
    assert not any(sequence.tables for sequence in scheduler.waiting)


def run(engine: Engine, model: str, traffic: list[Item]) -> dict[tuple[str, int], list[Said]]:
    found: dict[tuple[str, int], list[Said]] = {}
    for now in range(5_000):
        for name, item in enumerate(traffic):
            if item.arrival == now:
                add(engine, model, str(name), item.prompt, item.heard, item.params, salt=item.salt)
                if item.abort_after == 0:
                    engine.abort(str(name))
        for event in engine.step():
            key = event.request_id, event.index
            found.setdefault(key, []).extend(said([event]))
            if len(found[key]) == traffic[int(event.request_id)].abort_after:
                engine.abort(*key)
        check_between_steps(engine)
        if not engine.has_work and now >= LAST:
            return found
    raise AssertionError("starved")


def check(setup: Setup, traffic: list[Item]) -> None:
    engine = setup.engine()
    found = run(engine, setup.model, traffic)
    for name, item in enumerate(traffic):
        for index in range(item.params.n):
            wanted = alone(setup.model, item.prompt, item.heard, item.params, index)
            assert found.get((str(name), index), []) == wanted[: item.abort_after]
    engine._drop_unwanted()
    check_empty(engine)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_bits_do_not_depend_on_the_traffic(model: str, data: st.DataObject) -> None:
    check(*data.draw(cases(model)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_bits_do_not_depend_on_much_traffic(model: str, data: st.DataObject) -> None:
    check(*data.draw(cases(model)))


def scenario() -> None:
    """What a fault must not survive: reuse, misses, choices, preemption, steps ahead, odd chunks, aborts."""
    long, short = STREAMS[0][:30], STREAMS[1]
    for model in ("convolution", "cross", "window", "mixed"):
        answer = [token for token, _, _ in alone(model, long, 1, greedy(9))]
        traffic = [
            Item(0, long, 1, greedy(9), None, ""),
            Item(0, short[:9], 1, greedy(9), None, ""),
            Item(1, short[:11], 2, greedy(9), 4, ""),
            Item(12, long, 1, greedy(9), None, ""),
            Item(12, long, 2, sampled(6, seed=1, n=3), None, ""),
            Item(12, long, 2, greedy(9), None, "k"),
            Item(20, [*long[:6], 1, 1], 1, greedy(9), None, ""),
            Item(20, [*long[:23], 1, 1], 1, greedy(9), None, ""),
            Item(30, [*long, *answer[:6], 1], 1, greedy(9), None, ""),
        ]
        for blocks, chunk, overlapping in ((13, 0, False), (13, 7, True), (128, 7, False), (128, 0, True)):
            options = EngineOptions(max_prefill_chunk=chunk)
            setup = Setup(model, options, overlapping=overlapping, num_blocks=blocks, max_seqs=3, window_blocks=18)
            check(setup, traffic)
    engine = Setup("convolution", overlapping=True).engine()
    cached = []
    for prompt in (long, long, [*long[:23], 1, 1], short):
        add(engine, "convolution", "x", prompt, 1, greedy(9))
        cached.append(drain(engine)["x", 0][0].cached_tokens)
    assert cached == [0, 28, 16, 0]


def swap_copies(slots: SlotPlaces, table: array[int], block: int) -> None:
    CHECKPOINT(slots, table, block)
    slots.moves[:] = [Copy(m.group, m.target, m.source) if isinstance(m, Copy) else m for m in slots.moves]


def without(kind: type) -> Callable[[Engine], None]:
    def move(engine: Engine) -> None:
        if engine.scheduler.states is not None:
            engine.scheduler.states.moves[:] = [m for m in engine.scheduler.states.moves if not isinstance(m, kind)]
        MOVE(engine)

    return move


def keep_every_place(places: Places, place: int, retain: bool = True) -> None:
    if place in places._keys:
        RELEASE(places, place, retain)


def one_key_for_all_inputs(brought: object) -> bytes:
    return b"the same" if brought else b""


def checkpoint_after_other_block(states: StatePlaces, sequence: Sequence, block: int) -> None:
    index = sequence.blocks.index(block) if block in sequence.blocks else 0
    STATES_CHECKPOINT(states, sequence, sequence.blocks[index - 1] if index else block)


def leave_too_early(window: WindowPlaces, table: array[int], num_tokens: int) -> None:
    LEAVE(window, table, num_tokens + window.block_size)


CHECKPOINT, STATES_CHECKPOINT, LEAVE = SlotPlaces.checkpoint, StatePlaces.checkpoint, WindowPlaces.leave
MOVE, RELEASE = Engine._move, Places.release
FAULTS: dict[str, tuple[object, str, object]] = {
    "a hit without a checkpoint": (StatePlaces, "usable", lambda self, blocks: len(blocks)),
    "a checkpoint of another position": (StatePlaces, "checkpoint", checkpoint_after_other_block),
    "chunks that are not cut": (StatePlaces, "cut", lambda self, sequence, chunk: chunk),
    "checkpoints between ends of blocks": (StatePlaces, "due", lambda self, sequence, num_tokens: num_tokens > 0),
    "a copy the wrong way": (SlotPlaces, "checkpoint", swap_copies),
    "no copies": (Engine, "_move", without(Copy)),
    "no fills": (Engine, "_move", without(Fill)),
    "places that are not given back": (Places, "release", keep_every_place),
    "one key for all inputs": (engine_module, "digest", one_key_for_all_inputs),
    "blocks shared among inputs": (Engine, "_checked_keys", lambda self, keys, num_prompt: {}),
    "content without its block": (StatePlaces, "forget", lambda self, block: None),
    "a window that is left too early": (WindowPlaces, "leave", leave_too_early),
    "a window that is never left": (WindowPlaces, "leave", lambda self, table, num_tokens: None),
    "a window's blocks by other numbers": (WindowPlaces, "computed", lambda self, table, i, _: self.places.keep(i, table[i])),
    "more let in than there are places": (StatePlaces, "fits", lambda self, sequence: True),
}


@pytest.fixture(scope="module", autouse=True)
def right() -> None:
    """Without a fault the scenario passes; what its requests say alone is known from here on."""
    scenario()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, value = FAULTS[fault]
    monkeypatch.setattr(owner, name, value)
    with pytest.raises((AssertionError, KeyError)):
        scenario()


def test_a_step_ahead_of_a_checkpoint_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is made after the next step has begun holds one token too many."""
    ahead = Scheduler.ahead

    def careless(self: Scheduler, plan: list[object]) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(StatePlaces, "due", lambda *_: False)
            return ahead(self, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(Scheduler, "ahead", careless)
    with pytest.raises(AssertionError):
        scenario()


def test_a_cache_that_names_no_keys_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    content = PrefixCache._content
    monkeypatch.setattr(PrefixCache, "_content", lambda self, tokens, index, keys: content(self, tokens, index, {}))
    with pytest.raises(AssertionError):
        scenario()

"""The scheduler's choices, step by step, without a device."""

from __future__ import annotations

from array import array

from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.scheduler import Planned, Scheduler
from ferrum.engine.sequence import Sequence, State
from tests.engine.oracle import limits

PARAMS = SamplingParams(temperature=0, max_tokens=100)


def sequence(arrival: int, length: int, salt: bytes | None = None, params: SamplingParams = PARAMS) -> Sequence:
    prompt = array("i", [(arrival * 7 + i) % 30 for i in range(length)])
    return Sequence(
        str(arrival), 0, prompt, params, arrival=arrival, seed=0, max_tokens=100, stop_ids=frozenset(), salt=salt
    )  # fmt: skip


def scheduler(*sequences: Sequence, options: EngineOptions | None = None, **changes: int) -> Scheduler:
    made = Scheduler(limits(**changes), options or EngineOptions())
    for one in sequences:
        made.add(one)
    return made


def step(made: Scheduler) -> list[tuple[int, int, bool]]:
    """Schedule and pretend to run: (arrival, tokens, samples)."""
    plan = made.schedule()
    for planned in plan:
        made.complete(planned)
        if planned.samples:
            planned.sequence.append(1)
    return [(p.sequence.arrival, p.num_tokens, p.samples) for p in plan]


def test_decode_comes_first_then_chunks_then_newcomers() -> None:
    made = scheduler(sequence(0, 2), max_tokens=8, num_blocks=64)
    assert step(made) == [(0, 2, True)]
    made.add(sequence(1, 10))
    made.add(sequence(2, 3))
    assert step(made) == [(0, 1, True), (1, 7, False)]
    assert step(made) == [(0, 1, True), (1, 3, True), (2, 3, True)]
    assert step(made) == [(0, 1, True), (1, 1, True), (2, 1, True)]


def test_a_chunk_limit_leaves_room_for_others() -> None:
    made = scheduler(sequence(0, 9), sequence(1, 9), options=EngineOptions(max_prefill_chunk=4), max_tokens=10)
    assert step(made) == [(0, 4, False), (1, 4, False)]


def test_without_a_sample_left_the_last_token_waits() -> None:
    made = scheduler(sequence(0, 3), sequence(1, 3), sequence(2, 1), max_samples=1)
    assert step(made) == [(0, 3, True), (1, 2, False)]
    assert step(made) == [(0, 1, True)]
    made.remove(made.running[0])
    assert step(made) == [(1, 1, True)]


def test_lists_that_are_full_delay_a_row() -> None:
    wide = SamplingParams(temperature=0, repetition_penalty=1.1)
    made = scheduler(sequence(0, 5, params=wide), sequence(1, 5, params=wide), max_adjust=8)
    assert step(made) == [(0, 5, True), (1, 4, False)]


def test_the_first_in_the_queue_is_not_overtaken_for_memory() -> None:
    made = scheduler(sequence(0, 20), sequence(1, 20), sequence(2, 1), num_blocks=8)
    assert [p[0] for p in step(made)] == [0]
    assert [p[0] for p in step(made)] == [0]
    made.remove(made.running[0])
    assert [p[0] for p in step(made)] == [1, 2]


def test_admission_leaves_a_block_for_each_running_sequence() -> None:
    made = scheduler(sequence(0, 4), sequence(1, 4), sequence(2, 4), num_blocks=4)
    assert [p[0] for p in step(made)] == [0, 1]
    assert [p[0] for p in step(made)] == [0, 1]
    assert made.pool.available == 0 and made.preemptions == 0


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    made = scheduler(sequence(0, 4), sequence(1, 4), sequence(2, 1), num_blocks=4)
    for _ in range(5):
        step(made)
    assert made.preemptions == 0 and [len(s.blocks) for s in made.running] == [2, 2]
    assert step(made) == [(0, 1, True)], "nobody is admitted in a step that preempted"
    assert made.preemptions == 1 and [s.arrival for s in made.waiting] == [1, 2]
    assert made.waiting[0].state is State.WAITING and not made.waiting[0].blocks
    made.remove(made.running[0])
    assert step(made) == [(1, 9, True)], "prompt and output are computed again"


def test_the_tail_of_a_prefix_is_evicted_before_its_head() -> None:
    made = scheduler(sequence(0, 13, salt=b""), num_blocks=6)
    step(made)
    made.remove(made.running[0])
    assert made.pool.num_idle == 3
    for _ in range(4):
        made.pool.take()
    again = sequence(0, 13, salt=b"")
    made.cache.extend_chain(again.chain, b"", again.tokens)
    assert len(made.cache.find(again.chain, b"", again.tokens)) == 2


def test_a_finished_leader_is_not_waited_for() -> None:
    leader, follower = sequence(0, 9, salt=b"x"), sequence(1, 9, salt=b"x")
    follower.leader = leader
    made = scheduler(leader, follower, sequence(2, 2), max_tokens=8)
    assert step(made) == [(0, 8, False)]
    made.remove(leader)
    assert step(made) == [(1, 8, False)]


def test_others_pass_while_choices_wait_for_their_leader() -> None:
    leader, follower = sequence(0, 9, salt=b"x"), Sequence(
        "0", 1, array("i", range(9)), PARAMS, arrival=1, seed=0, max_tokens=9, stop_ids=frozenset(), salt=b"x"
    )  # fmt: skip
    leader.tokens[:] = array("i", range(9))
    follower.leader = leader
    made = scheduler(leader, follower, sequence(2, 2), max_tokens=64)
    assert step(made) == [(0, 9, True), (2, 2, True)]
    assert step(made) == [(0, 1, True), (2, 1, True), (1, 1, True)]
    assert follower.cached_tokens == 8 and isinstance(made.schedule()[0], Planned)

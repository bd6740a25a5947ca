"""A thinking budget: the closing mark comes when it is spent and no later, and what follows is what the model says after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.thinking import Thinking, ThinkingBudget
from ferrum.errors import FerrumError
from tests.engine.oracle import VOCAB, check_empty, drain, new_engine
from tests.engine.state_models import OverlappingInterpreter, Setup, greedy
from tests.graphs import toys

START, END = VOCAB - 2, VOCAB - 1
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
OPENED = ThinkingBudget(tokens=5, start=START, end=END, opened=True)
# neither mark is sampled, so that where they stand the engine put them
BASE = SamplingParams(temperature=0.0, max_tokens=12, logit_bias={START: -100.0, END: -100.0})


def run(prompt: list[int], params: SamplingParams, **changes: int) -> list[int]:
    engine = new_engine(EngineOptions(), **changes)
    engine.add("x", prompt, params)
    out = [e.token for e in drain(engine)["x", 0]]
    check_empty(engine)
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 14), st.lists(st.integers(0, VOCAB - 3), min_size=1, max_size=20))
def test_the_mark_stands_where_the_budget_ends(budget: int, prompt: list[int]) -> None:
    plain = run(prompt, BASE)
    bound = run(prompt, replace(BASE, thinking=replace(OPENED, tokens=budget)))
    if budget >= 12:
        assert bound == plain
        return
    assert bound[:budget] == plain[:budget] and bound[budget] == END and len(bound) == 12
    after = replace(BASE, max_tokens=12 - budget - 1) if budget < 11 else None
    assert after is None or bound[budget + 1 :] == run(prompt + bound[: budget + 1], after), "the model goes on after the mark"


def test_reasoning_that_the_model_opens() -> None:
    """It is counted from its opening mark; what never opens is never closed."""
    thinking = Thinking(replace(OPENED, tokens=2, opened=False))
    assert [thinking.take(t) for t in (7, START, 8, 9, 10, 11)] == [7, START, 8, 9, END, 11]
    thinking = Thinking(replace(OPENED, tokens=2, opened=False))
    assert [thinking.take(t) for t in (START, 8, END, START, 1, 2, 3)] == [START, 8, END, START, 1, 2, 3]
    thinking = Thinking(replace(OPENED, tokens=0, opened=False))
    assert [thinking.take(t) for t in range(5)] == list(range(5))


def test_choices_preemption_and_logprobs() -> None:
    """Each choice has its own budget, and what was taken stays when a sequence is computed again."""
    params = replace(BASE, temperature=1.0, seed=1, n=3, thinking=OPENED, logprobs=1)
    alone = new_engine(EngineOptions())
    alone.add("x", PROMPT, params)
    whole = drain(alone)
    tight = new_engine(EngineOptions(), num_blocks=8, block_size=4)
    tight.add("x", PROMPT, params)
    found = drain(tight)
    assert tight.stats().num_preemptions > 0
    for index in range(3):
        tokens = [e.token for e in found["x", index]]
        assert tokens == [e.token for e in whole["x", index]] and tokens[5] == END
        assert found["x", index][5].logprob == 0.0


def test_marks_beyond_the_vocabulary_are_refused() -> None:
    engine = new_engine(EngineOptions())
    with pytest.raises(FerrumError) as refused:
        engine.add("x", PROMPT, replace(BASE, logit_bias={}, thinking=replace(OPENED, end=VOCAB)))
    assert refused.value.where == "thinking"
    with pytest.raises(FerrumError):
        replace(OPENED, tokens=-1)


def test_steps_that_are_started_ahead() -> None:
    """No step is started from a token that the mark takes the place of."""
    budget = ThinkingBudget(tokens=5, start=toys.VOCAB - 2, end=toys.VOCAB - 1, opened=True)
    found = {}
    for overlapping in (False, True):
        engine = Setup("convolution", overlapping=overlapping).engine()
        params = greedy(14, thinking=budget, logit_bias={toys.VOCAB - 1: -100.0})
        engine.add("x", PROMPT, params)
        found[overlapping] = [e.token for e in drain(engine)["x", 0]]
        if isinstance(engine.executor, OverlappingInterpreter):
            assert engine.executor.num_ahead > 5
    assert found[True] == found[False] and found[True].index(budget.end) == 5

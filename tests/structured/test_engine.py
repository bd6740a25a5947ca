"""The engine under grammars: company, preemption, several choices, forced tokens, ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from ferrum.devices.base import Limits, StepBuffers
from ferrum.devices.null import NullExecutor
from ferrum.engine.engine import Engine
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.engine.thinking import ThinkingBudget
from ferrum.pack.schema import TextRecord
from ferrum.structured.masks import GrammarMasks
from ferrum.structured.wish import Structured
from tests.engine.oracle import check_empty, drain
from tests.structured.random_model import END, PADDED, RandomModel, tokenizer

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"given_name": {"enum": ["Alice", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["given_name", "age"],
    "additionalProperties": False,
}
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def model() -> Iterator[RandomModel]:
    made = RandomModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def person(model: RandomModel) -> str:
    return model.grammars.content(Structured(json=PERSON, compact=True), "x")


def new_engine(num_blocks: int = 400, kind: type[NullExecutor] = NullExecutor) -> Engine:
    limits = Limits(
        max_tokens=64, max_seqs=8, max_samples=8, num_blocks=num_blocks, block_size=4, max_blocks_per_seq=100, vocab_size=PADDED
    )
    return Engine(kind(limits), eos_token_ids=[END], masks=GrammarMasks(tokenizer, PADDED, [END]))


def text_of(events: list[TokenEvent]) -> str:
    ids = [e.token for e in events if e.finish_reason != "stop"]
    return b"".join(map(tokenizer().token_bytes, ids)).decode()


def run(engine: Engine, requests: dict[str, SamplingParams]) -> dict[tuple[str, int], list[TokenEvent]]:
    for name, params in requests.items():
        engine.add(name, PROMPT, params)
    found = drain(engine)
    check_empty(engine)
    return found


def params(grammar: str, seed: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"grammar": grammar, "seed": seed, "temperature": 1.0, "max_tokens": 80, **changes})


def test_every_choice_keeps_to_its_grammar_whatever_the_company(person: str) -> None:
    alone = [run(new_engine(), {"a": params(person, seed, n=2)}) for seed in range(3)]
    free = SamplingParams(seed=3, max_tokens=30)
    together = run(new_engine(), {**{f"g{seed}": params(person, seed, n=2) for seed in range(3)}, "free": free})
    for seed in range(3):
        for index in range(2):
            events = together[f"g{seed}", index]
            jsonschema.validate(json.loads(text_of(events)), PERSON)
            assert events[-1].finish_reason == "stop" and events[-1].token == END
            assert [e.token for e in events] == [e.token for e in alone[seed]["a", index]]
    assert [e.token for e in together["free", 0]] == [e.token for e in run(new_engine(), {"free": free})["free", 0]]


def test_forced_tokens_take_no_steps_but_where_each_has_a_probability(person: str) -> None:
    fast, slow = new_engine(), new_engine()
    skipped = run(fast, {"a": params(person, 1)})["a", 0]
    stepped = run(slow, {"a": params(person, 1, logprobs=1)})["a", 0]
    for events in (skipped, stepped):
        jsonschema.validate(json.loads(text_of(events)), PERSON)
    assert slow.counters.iterations >= len(stepped) and all(e.logprob is not None for e in stepped)
    assert fast.counters.iterations < 0.6 * len(skipped)
    assert fast.counters.tokens_generated == len(skipped)


class OverlappingNull(NullExecutor):
    """Steps that are started ahead. Each runs when it is started: an order that every device keeps."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.other = StepBuffers(limits)
        self.under_way: list[StepBuffers] = []
        self.num_ahead = 0

    def begin(self, ahead: bool = False) -> None:
        if ahead:
            self.num_ahead += 1
            self.buffers.tokens[: self.buffers.num_tokens] = self.under_way[-1].out_token[: self.buffers.num_tokens]
        self.step()
        self.under_way.append(self.buffers)
        self.buffers, self.other = self.other, self.buffers

    def finish(self) -> StepBuffers:
        return self.under_way.pop(0)


def test_steps_ahead_wait_for_grammars_and_go_on_after_them(person: str) -> None:
    requests = {"g": params(person, 1, n=2), "free": SamplingParams(seed=3, max_tokens=90), "late": params(person, 2)}
    plain, ahead = new_engine(), new_engine(kind=OverlappingNull)
    expected, found = run(plain, requests), run(ahead, requests)
    assert {k: [e.token for e in v] for k, v in found.items()} == {k: [e.token for e in v] for k, v in expected.items()}
    assert isinstance(ahead.executor, OverlappingNull) and ahead.executor.num_ahead > 5


def test_forced_tokens_stop_at_the_limit(person: str) -> None:
    for most in range(1, 12):
        events = run(new_engine(), {"a": params(person, 1, max_tokens=most)})["a", 0]
        assert len(events) == most and events[-1].finish_reason == "length"


def test_answers_go_on_after_preemption(person: str) -> None:
    requests = {f"g{seed}": params(person, seed, max_tokens=50) for seed in range(8)}
    calm, tight = new_engine(), new_engine(num_blocks=16)
    expected, found = run(calm, requests), run(tight, requests)
    assert tight.stats().num_preemptions and not calm.stats().num_preemptions
    for key, events in expected.items():
        assert [e.token for e in found[key]] == [e.token for e in events]


def test_the_end_is_where_the_grammar_has_it(model: RandomModel) -> None:
    choice = model.grammars.content(Structured(choice=["yes", "yesterday"]), "x")
    for changes in ({"min_tokens": 40}, {"ignore_eos": True}, {"logit_bias": {END: -100.0}}, {"logit_bias": {END: 100.0}}):
        for seed in range(3):
            events = run(new_engine(), {"a": params(choice, seed, **changes)})["a", 0]
            assert text_of(events) in ("yes", "yesterday") and events[-1].token == END, changes


def test_what_a_grammar_cannot_end_is_told_and_harms_nobody(model: RandomModel) -> None:
    engine = new_engine()
    engine.add("bad", PROMPT, params("not a grammar", 1, n=2))
    engine.add("good", PROMPT, SamplingParams(max_tokens=5))
    found = drain(engine)
    assert [(name, error.code) for name, error in engine.failures] == [("bad", "grammar-refused")]
    assert found.keys() == {("good", 0)} and len(found["good", 0]) == 5
    check_empty(engine)


def test_a_request_that_waits_for_its_grammar_is_overtaken_and_can_be_ended(person: str) -> None:
    engine = new_engine()
    engine.add("grammar", PROMPT, params(person, 1))
    engine.add("free", PROMPT, SamplingParams(max_tokens=1))
    assert any(e.request_id == "free" for e in engine.step())
    assert engine.abort("grammar")
    check_empty(engine)
    engine.close()


@pytest.mark.parametrize("opened", [True, False])
def test_a_bound_on_reasoning_holds_beside_a_grammar(model: RandomModel, opened: bool) -> None:
    """The grammar goes on behind the mark that the bound puts there, as if the model had written it."""
    start, end = (tokenizer().encode(mark, special=False)[0] for mark in ("<tool_response>", "</tool_response>"))
    text = TextRecord(eos_token_ids=[END], reasoning_start="<tool_response>", reasoning_end="</tool_response>")
    thinks = model.like(text)
    prompt = "hi\n<tool_response>\n" if opened else "hi\n"
    grammar = thinks.grammars.content(Structured(json=PERSON, compact=True), "x", prompt)
    budget = ThinkingBudget(tokens=6, start=start, end=end, opened=opened)
    requests = {f"r{seed}": params(grammar, seed, thinking=budget, max_tokens=200) for seed in range(4)}
    for events in run(new_engine(), requests).values():
        tokens = [e.token for e in events]
        if end not in tokens:  # a model that does not open its reasoning has nothing to close
            assert not opened
            answer = events
        else:
            begun = 0 if opened else tokens.index(start) + 1
            assert tokens.index(end) - begun <= 6 + 3  # and the rest of a character
            answer = events[tokens.index(end) + 1 :]
        jsonschema.validate(json.loads(text_of(answer)), PERSON)
        assert events[-1].finish_reason == "stop"

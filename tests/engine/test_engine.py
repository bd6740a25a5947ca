"""The engine's promises, one by one, over the null device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ferrum.devices.null import NullExecutor, null_logits
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.errors import FerrumError
from ferrum.pack.sampling import allow_bits, log_softmax
from tests.engine.oracle import VOCAB, check_empty, drain, expected, limits, new_engine, tokens_of

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
PROMPT = [int(t) for t in np.random.default_rng(9).integers(0, VOCAB, 30)]


def refusal(engine: Engine, prompt: list[int], params: SamplingParams = GREEDY) -> FerrumError:
    with pytest.raises(FerrumError) as caught:
        engine.add("x", prompt, params)
    assert not engine.has_work
    return caught.value


def test_what_can_never_fit_is_refused_at_once() -> None:
    engine = new_engine(EngineOptions(), num_blocks=4, block_size=4)
    assert engine.max_model_len == 16
    assert refusal(engine, [1] * 16).code == "prompt-too-long"
    assert refusal(engine, [1] * 16, SamplingParams()).code == "prompt-too-long"
    error = refusal(engine, [1] * 9)
    assert error.code == "request-too-long" and error.where == "max_tokens" and "7" in error.next_step
    assert refusal(engine, []).code == "prompt-empty"
    assert refusal(engine, [VOCAB]).code == "invalid-token"
    assert refusal(engine, [-1]).code == "invalid-token"
    assert refusal(engine, [1 << 40]).code == "invalid-token"
    assert refusal(engine, [1], SamplingParams(logit_bias={VOCAB: 1.0})).where == "logit_bias"
    assert refusal(engine, [1], SamplingParams(stop_token_ids=(VOCAB,))).where == "stop_token_ids"
    assert refusal(engine, [1], SamplingParams(grammar="root ::= x")).where == "grammar"
    assert engine.stats().num_rejected == 10 and engine.stats().num_requests == 0
    engine.add("x", [1] * 8, GREEDY)
    assert [e.finish_reason for e in drain(engine)["x", 0]][-1] == "length"
    check_empty(engine)


def test_without_max_tokens_the_context_is_filled() -> None:
    engine = new_engine(EngineOptions(max_model_len=20))
    engine.add("x", PROMPT[:5], SamplingParams(temperature=0))
    events = drain(engine)["x", 0]
    assert len(events) == 15 and events[-1].finish_reason == "length"


def test_lists_that_exceed_the_device_are_refused() -> None:
    engine = new_engine(max_adjust=8)
    assert refusal(engine, [1], SamplingParams(repetition_penalty=1.2, max_tokens=9)).code == "invalid-parameter"
    assert refusal(engine, [1], SamplingParams(logit_bias={i: 1.0 for i in range(9)})).code == "invalid-parameter"


def test_a_full_queue_and_a_repeated_id_are_refused() -> None:
    engine = new_engine(EngineOptions(max_queue=1), max_seqs=2)
    engine.add("a", [1], GREEDY)
    with pytest.raises(FerrumError, match="of this id"):
        engine.add("a", [1], GREEDY)
    with pytest.raises(FerrumError) as caught:
        engine.add("b", [1], SamplingParams(n=3))
    assert caught.value.code == "queue-full"
    engine.add("b", [1], SamplingParams(n=2, max_tokens=2))
    engine.step()
    with pytest.raises(FerrumError, match="queue is full"):
        engine.add("c", [1], GREEDY)
    drain(engine)
    check_empty(engine)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_choices_share_the_prompt_even_without_the_prefix_cache(prefix_cache: bool) -> None:
    params = SamplingParams(n=4, seed=3, max_tokens=6)
    engine = new_engine(EngineOptions(prefix_cache=prefix_cache))
    engine.add("x", PROMPT, params)
    found = drain(engine)
    for index in range(4):
        assert tokens_of(found["x", index]) == expected(PROMPT, params, 6, index=index)[0]
    assert len({tuple(tokens_of(events)) for events in found.values()}) == 4
    stats = engine.stats()
    assert stats.num_prefill_tokens == 30 + 3 * 2, "7 blocks of 4 are shared, the last two tokens are computed by each"
    assert [found["x", i][0].cached_tokens for i in range(4)] == [0, 28, 28, 28]
    check_empty(engine)
    engine.add("y", PROMPT, GREEDY)
    assert drain(engine)["y", 0][0].cached_tokens == (28 if prefix_cache else 0)


def test_the_prefix_cache_counts_what_it_saves() -> None:
    engine = new_engine()
    for name in ("a", "b"):
        engine.add(name, PROMPT, GREEDY)
        drain(engine)
    engine.add("c", PROMPT, GREEDY, salt="other")
    drain(engine)
    stats = engine.stats()
    assert (stats.prefix_cache_hits, stats.prefix_cache_misses, stats.prefix_cache_saved_tokens) == (1, 2, 28)
    assert stats.num_prefill_tokens == 30 + 2 + 30 and stats.num_decode_tokens == 3 * 7
    assert stats.num_tokens_generated == 24 and stats.prefix_cache_entries > 7


def test_extra_keys_part_what_only_looks_alike() -> None:
    engine = new_engine()
    cached = {}
    one, two, adapter = (8, b"image one"), (8, b"image two"), (0, b"adapter")
    for name, keys in {"a": [], "b": [one], "c": [one], "d": [two], "e": [adapter, one], "f": []}.items():
        engine.add(name, PROMPT, GREEDY, extra_keys=keys)
        cached[name] = drain(engine)[name, 0][0].cached_tokens
    assert cached == {"a": 0, "b": 8, "c": 28, "d": 8, "e": 0, "f": 28}
    for position in (-1, len(PROMPT)):
        with pytest.raises(FerrumError, match="outside of a prompt of 30") as caught:
            engine.add("x", PROMPT, GREEDY, extra_keys=[(position, b"")])
        assert caught.value.where == "extra_keys" and not engine.has_work


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    engine = new_engine(block_size=2)
    for name in ("a", "b"):
        engine.add(name, PROMPT, GREEDY)
        assert tokens_of(drain(engine)[name, 0]) == expected(PROMPT, GREEDY, 8)[0]
    assert engine.stats().prefix_cache_saved_tokens == 28


def test_stop_tokens_end_a_choice_and_are_its_last_token() -> None:
    plain = expected(PROMPT, GREEDY, 8)[0]
    stop = plain[3]
    engine = new_engine(EngineOptions(), eos=(stop,))
    cut = plain[: plain.index(stop) + 1]
    engine.add("eos", PROMPT, GREEDY)
    engine.add("ignored", PROMPT, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    engine.add("id", PROMPT, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop_token_ids=(plain[1],)))
    late = SamplingParams(temperature=0, max_tokens=8, min_tokens=6)
    engine.add("late", PROMPT, late)
    found = drain(engine)
    assert tokens_of(found["eos", 0]) == cut and found["eos", 0][-1].finish_reason == "stop"
    assert tokens_of(found["ignored", 0]) == plain and found["ignored", 0][-1].finish_reason == "length"
    assert tokens_of(found["id", 0]) == plain[:2] and found["id", 0][-1].finish_reason == "stop"
    assert tokens_of(found["late", 0]) == expected(PROMPT, late, 8, (stop,))[0]
    assert stop not in tokens_of(found["late", 0])[:6]


def test_an_abort_takes_effect_between_two_steps() -> None:
    engine = new_engine()
    engine.add("a", PROMPT, SamplingParams(n=2, max_tokens=50, seed=1))
    for _ in range(4):
        engine.step()
    used = engine.stats().blocks_used
    assert engine.abort("a", 1) and not engine.abort("a", 1) and not engine.abort("b")
    assert engine.stats().blocks_used < used
    assert {e.index for e in engine.step()} == {0}
    assert engine.abort("a")
    assert engine.step() == []
    check_empty(engine)


def test_logprobs_come_with_the_tokens() -> None:
    engine = new_engine()
    engine.add("a", PROMPT, SamplingParams(temperature=0, max_tokens=3, logprobs=2, repetition_penalty=1.5))
    engine.add("b", PROMPT, SamplingParams(temperature=0, max_tokens=3, logprobs=0))
    engine.add("c", PROMPT, GREEDY)
    found = drain(engine)
    history = list(PROMPT)
    for event in found["a", 0]:
        raw = log_softmax(null_logits(history, VOCAB))
        best = np.argsort(-raw, kind="stable")[:2]
        assert event.logprob == pytest.approx(raw[event.token], abs=1e-6)
        assert [t for t, _ in event.top] == best.tolist()
        assert [p for _, p in event.top] == pytest.approx(raw[best], abs=1e-6)
        history.append(event.token)
    assert all(e.logprob is not None and e.top == () for e in found["b", 0])
    assert all(e.logprob is None for e in found["c", 0])


def test_more_logprobs_than_tokens_in_the_vocabulary() -> None:
    engine = new_engine(vocab_size=5)
    engine.add("a", [1, 2], SamplingParams(temperature=0, max_tokens=1, logprobs=20))
    (event,) = drain(engine)["a", 0]
    assert sorted(t for t, _ in event.top) == [0, 1, 2, 3, 4]


class EvenThenOdd:
    """A grammar: tokens alternate between even and odd. ``late``: asked so often before a mask is ready."""

    def __init__(self, late: int = 0) -> None:
        self.accepted: list[int] = []
        self.error: FerrumError | None = None
        self.late = self._waits = late

    @property
    def ready(self) -> bool:
        self._waits -= 1
        return self._waits < 0

    def fill(self, row: np.ndarray) -> None:
        allow_bits(range(len(self.accepted) % 2, VOCAB, 2), row)

    def allows(self, token: int) -> bool:
        return token % 2 == len(self.accepted) % 2

    def accept(self, token: int) -> None:
        self.accepted.append(token)
        self._waits = self.late

    def forced(self) -> list[int]:
        return []


class Alternating:
    """Makes them."""

    def __init__(self, mask: Callable[[], EvenThenOdd] = EvenThenOdd) -> None:
        self._mask = mask

    def __call__(self, grammar: str) -> EvenThenOdd:
        return self._mask()

    def begin(self, masks: object) -> None:
        """Each is there at once, or when it has been asked for often enough."""

    def wait(self, masks: object, seconds: float) -> None:
        """Nothing works in the background."""

    def close(self) -> None:
        """Nothing to close."""


def test_a_mask_steers_its_own_sequence_only() -> None:
    engine = Engine(NullExecutor(limits(num_blocks=12, max_blocks_per_seq=12)), masks=Alternating())
    params = SamplingParams(grammar="x", max_tokens=10, n=2, seed=5)
    engine.add("g", PROMPT, params)
    free = SamplingParams(temperature=0, max_tokens=12)
    engine.add("f", PROMPT, free)
    found = drain(engine)
    for index in range(2):
        assert [t % 2 for t in tokens_of(found["g", index])] == [0, 1] * 5
    assert tokens_of(found["f", 0]) == expected(PROMPT, free, 12)[0]


def test_a_mask_that_is_late_holds_up_nobody_else() -> None:
    engine = Engine(NullExecutor(limits(num_blocks=12, max_blocks_per_seq=12)), masks=Alternating(lambda: EvenThenOdd(late=9)))
    engine.add("g", PROMPT, SamplingParams(grammar="x", max_tokens=6, seed=5))
    free = SamplingParams(temperature=0, max_tokens=12)
    engine.add("f", PROMPT, free)
    seen: list[str] = []
    while engine.has_work:
        seen += [e.request_id for e in engine.step()]
    assert seen.count("g") == 6 and seen.count("f") == 12
    assert "g" not in seen[:2] and seen[-1] == "g"


@pytest.mark.parametrize(("max_samples", "max_tokens"), [(8, 64), (3, 64), (8, 5), (1, 1)])
def test_logits_of_every_token(max_samples: int, max_tokens: int) -> None:
    engine = new_engine(max_samples=max_samples, max_tokens=max_tokens)
    engine.add("before", PROMPT, SamplingParams(max_tokens=3, repetition_penalty=2.0, logit_bias={1: 50.0}, top_k=3))
    drain(engine)
    rows = engine.logits(PROMPT)
    assert rows.dtype == np.float32
    for i in range(len(PROMPT)):
        np.testing.assert_array_equal(rows[i], null_logits(PROMPT[: i + 1], VOCAB))
    check_empty(engine)
    engine.add("after", PROMPT, GREEDY)
    with pytest.raises(FerrumError, match="no request runs"):
        engine.logits(PROMPT)
    assert tokens_of(drain(engine)["after", 0]) == expected(PROMPT, GREEDY, 8)[0]


def test_a_step_allocates_no_arrays() -> None:
    engine = new_engine()
    buffers = engine.executor.buffers
    before = {name: id(value) for name, value in vars(buffers).items() if isinstance(value, np.ndarray)}
    engine.add("a", PROMPT, SamplingParams(max_tokens=20, repetition_penalty=1.1, logit_bias={1: 1.0}))
    drain(engine)
    assert before == {name: id(value) for name, value in vars(buffers).items() if isinstance(value, np.ndarray)}


def test_prefill_and_decode_share_a_step() -> None:
    engine = new_engine(max_tokens=8)
    engine.add("a", PROMPT[:4], SamplingParams(max_tokens=20, seed=1))
    engine.step()
    engine.add("b", PROMPT, GREEDY)
    for _ in range(3):
        assert [e.request_id for e in engine.step()] == ["a"], "decode goes on while the long prompt is computed"
    assert engine.stats().active_prefill == 1 and engine.stats().active_decode == 1
    assert {e.request_id for e in engine.step()} == {"a", "b"}


def test_bad_options_are_refused() -> None:
    for values in ({"max_num_seqs": -1}, {"max_queue": 0}, {"max_model_len": True}, {"max_prefill_chunk": 1.5}):
        with pytest.raises(FerrumError):
            EngineOptions(**values)  # type: ignore[arg-type]


def test_close_ends_everything() -> None:
    engine = new_engine()
    engine.add("a", PROMPT, GREEDY)
    engine.step()
    engine.close()
    check_empty(engine)
    assert isinstance(engine.executor, NullExecutor) and engine.executor.closed

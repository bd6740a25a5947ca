"""What the engine must say: the null device's function on the plain history, sampled without any engine code for lists."""

from __future__ import annotations

from typing import Any

import numpy as np

from ferrum.devices.base import Limits
from ferrum.devices.null import NullExecutor, null_logits
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.pack.sampling import choose, uniform

VOCAB = 37


def limits(**changes: Any) -> Limits:
    values: dict[str, Any] = {
        "max_tokens": 64, "max_seqs": 8, "max_samples": 8, "num_blocks": 64, "block_size": 4, "max_blocks_per_seq": 64,
        "vocab_size": VOCAB, "max_adjust": 4096,
    }  # fmt: skip
    return Limits(**{**values, **changes})


def new_engine(options: EngineOptions | None = None, eos: tuple[int, ...] = (), **changes: Any) -> Engine:
    return Engine(NullExecutor(limits(**changes)), options, eos_token_ids=eos)


def adjusted(history: list[int], num_prompt: int, params: SamplingParams, banned: set[int], vocab: int) -> np.ndarray:
    x = null_logits(history, vocab)
    for token, bias in params.logit_bias.items():
        x[token] += np.float32(bias)
    for token in banned:
        x[token] += np.float32(-1e30)
    output = history[num_prompt:]
    seen = history if params.repetition_penalty != 1.0 else output
    for token in set(seen):
        r = np.float32(params.repetition_penalty)
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
        count = output.count(token)
        presence = np.float32(params.presence_penalty) if count else np.float32(0)
        x[token] -= np.float32(count) * np.float32(params.frequency_penalty) + presence
    return x


def expected(
    prompt: list[int], params: SamplingParams, max_tokens: int, eos: tuple[int, ...] = (), index: int = 0, vocab: int = VOCAB
) -> tuple[list[int], str]:
    """Tokens and finish reason of choice ``index``; a sampled request needs a seed."""
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos))
    history = list(prompt)
    while True:
        draw = len(history) - len(prompt)
        banned = stops if draw < params.min_tokens else set()
        x = adjusted(history, len(prompt), params, banned, vocab)
        if params.greedy:
            token = int(np.argmax(x))
        else:
            assert params.seed is not None
            u = uniform(params.seed_of(index, 0), draw)
            token = choose(x / np.float32(params.temperature), max(params.top_k, 0), np.float32(params.top_p).item(),
                           np.float32(params.min_p).item(), u)  # fmt: skip
        history.append(token)
        if token in stops:
            return history[len(prompt) :], "stop"
        if draw + 1 == max_tokens:
            return history[len(prompt) :], "length"


def drain(engine: Engine, limit: int = 20_000) -> dict[tuple[str, int], list[TokenEvent]]:
    """Step to the end; the events of every choice."""
    found: dict[tuple[str, int], list[TokenEvent]] = {}
    for _ in range(limit):
        if not engine.has_work:
            return found
        for event in engine.step():
            found.setdefault((event.request_id, event.index), []).append(event)
    raise AssertionError("the engine does not finish")


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [e.token for e in events]


def check_empty(engine: Engine) -> None:
    """Nothing runs and every block can be had again."""
    scheduler = engine.scheduler
    assert not engine.has_work and not scheduler.waiting and not scheduler.running
    assert scheduler.pool.num_used == 0 and not any(scheduler.pool.references)
    assert scheduler.pool.available == scheduler.pool.num_blocks
    assert scheduler.cache.num_entries == scheduler.pool.num_idle
    if not engine.options.prefix_cache:
        assert scheduler.pool.num_idle == 0
    if scheduler.states is None:
        return
    assert not any(scheduler.states.reserved)
    for places in [group.places for group in scheduler.states.groups]:
        assert places.pool.num_used == 0 and not any(places.pool.references)
        assert places.num_known == places.pool.num_idle
        if not engine.options.prefix_cache:
            assert places.num_known == 0

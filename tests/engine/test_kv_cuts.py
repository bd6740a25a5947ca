"""KV memory cut to a part of what the requests need: sequences are preempted, and none says anything else for it."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from tests.engine.oracle import VOCAB, check_empty, drain, new_engine, tokens_of

COUNT = int(os.environ.get("CUT_REQUESTS", "24"))
BLOCK_SIZE, MAX_SEQS, LONGEST, NEW = 4, 12, 60, 40
NEEDED = MAX_SEQS * -(-(LONGEST + NEW) // BLOCK_SIZE)  # blocks of as many of the longest sequences as run at once


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("percent", [10, 25, 50])
def test_greedy_answers_are_those_of_the_unforced_run(percent: int, prefix_cache: bool) -> None:
    rng = np.random.default_rng(percent)
    prompts = [rng.integers(0, VOCAB, int(rng.integers(1, LONGEST))).tolist() for _ in range(COUNT)]
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)

    def answers(blocks: int) -> tuple[dict[str, list[int]], int]:
        options = EngineOptions(prefix_cache=prefix_cache, max_queue=COUNT)
        engine = new_engine(options, block_size=BLOCK_SIZE, num_blocks=blocks, max_seqs=MAX_SEQS, max_samples=MAX_SEQS)
        for i, prompt in enumerate(prompts):
            engine.add(str(i), prompt, params)
        found = drain(engine, limit=1000 * COUNT)
        check_empty(engine)
        return {name: tokens_of(events) for (name, _), events in found.items()}, engine.stats().num_preemptions

    whole, unforced = answers(NEEDED)
    cut, forced = answers(NEEDED * percent // 100)
    assert unforced == 0 and forced > COUNT // 12
    assert cut == whole and all(len(tokens) == NEW for tokens in whole.values())

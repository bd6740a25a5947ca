"""Greedy tokens do not depend on company, chunks, memory or the prefix cache: the generated code gives the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferrum import LLM, SamplingParams
from tests.codegen.conftest import VOCAB, RandomPack

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
QUANTS = ("none", "int4-g32")


def prompts(count: int) -> list[list[int]]:
    random = np.random.default_rng(count)
    shared = random.integers(0, VOCAB, 40).tolist()
    lengths = random.integers(1, 120, count)
    return [(shared if i % 3 == 0 else []) + random.integers(0, VOCAB, n).tolist() for i, n in enumerate(lengths)]


def tokens(llm: LLM, many: list[list[int]], params: SamplingParams = PARAMS) -> list[list[int]]:
    return [list(out.token_ids) for out in llm.generate(many, params)]


@pytest.fixture(scope="module", params=QUANTS)
def alone(request: pytest.FixtureRequest, random_pack: RandomPack) -> tuple[Path, list[list[int]], list[list[int]]]:
    """A pack, sixteen prompts, and what each gives when it runs alone, in one prefill chunk, without prefix cache."""
    pack, many = random_pack(request.param), prompts(16)
    with LLM(pack, prefix_cache=False) as llm:
        return pack, many, [tokens(llm, [prompt])[0] for prompt in many]


@pytest.mark.parametrize("count", [2, 5, 16])
def test_in_batches(alone: tuple[Path, list[list[int]], list[list[int]]], count: int) -> None:
    pack, many, expected = alone
    with LLM(pack) as llm:
        assert tokens(llm, many[:count]) == expected[:count]


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_with_chunks(alone: tuple[Path, list[list[int]], list[list[int]]], chunk: int) -> None:
    pack, many, expected = alone
    with LLM(pack, max_prefill_chunk=chunk) as llm:
        assert tokens(llm, many) == expected


@pytest.mark.parametrize("blocks", [13, 20, 40])
def test_with_little_memory(alone: tuple[Path, list[list[int]], list[list[int]]], blocks: int) -> None:
    from ferrum.pack.programs import kv_groups
    from ferrum.pack.reader import read_manifest

    pack, many, expected = alone
    memory = blocks * kv_groups(read_manifest(pack))[0].unit_bytes
    with LLM(pack, kv_cache_memory=memory, max_model_len=200) as llm:
        assert tokens(llm, many) == expected
        assert llm.stats().num_preemptions > 0


def test_with_a_warm_prefix_cache(alone: tuple[Path, list[list[int]], list[list[int]]]) -> None:
    pack, many, expected = alone
    with LLM(pack) as llm:
        assert tokens(llm, many) == expected
        assert tokens(llm, many) == expected
        assert llm.stats().prefix_cache_hits > 0


def test_seeded_sampling_repeats_in_any_company(alone: tuple[Path, list[list[int]], list[list[int]]]) -> None:
    pack, many, _ = alone
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_tokens=16, ignore_eos=True)
    with LLM(pack) as llm:
        together = tokens(llm, many, params)
    with LLM(pack, prefix_cache=False, max_prefill_chunk=7) as llm:
        assert [tokens(llm, [prompt], params)[0] for prompt in many] == together


def test_any_number_of_threads_gives_the_same(alone: tuple[Path, list[list[int]], list[list[int]]]) -> None:
    pack, many, expected = alone
    for threads in (1, 3, 96):
        with LLM(pack, num_threads=threads) as llm:
            assert tokens(llm, many[:6]) == expected[:6]

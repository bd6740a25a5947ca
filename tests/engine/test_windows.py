"""Sliding windows on the CPU: memory of the window only, and the bits of the full cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ferrum.devices.cpu import CpuDevice
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.pack.reader import Pack, open_pack
from tests.codegen.folders import compile_folder
from tests.engine.oracle import check_empty, drain
from tests.engine.windows import Poisoned, answers, blocks_of_cpu, greedy, keep_everything, prompt_of, said, save_model

WINDOW, CHUNK = 200, 96
BLOCK = 16


@pytest.fixture(scope="module", params=["mixed", pytest.param("all", marks=pytest.mark.slow)])
def pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = save_model(tmp_path_factory.mktemp(request.param), WINDOW, request.param == "mixed")
    with open_pack(compile_folder(folder, prove=True)) as opened:
        yield opened


@contextmanager
def device(pack: Pack, **changes: Any) -> Iterator[Poisoned]:
    options = DeviceOptions(**{"max_seqs": 2, "max_tokens": CHUNK, "num_threads": 2, "prefault": False, **changes})
    executor = CpuDevice().load(pack, options)
    try:
        yield Poisoned(executor, blocks_of_cpu(executor))
    finally:
        executor.close()


def check_long_context(pack: Pack, length: int) -> None:
    prompt, max_tokens = prompt_of(1, length - 40), 40
    with device(pack, max_model_len=length) as released:
        found = answers(released, [prompt], max_tokens)
        assert released.passed and BLOCK * released.held[1] <= 1.1 * (WINDOW + CHUNK + BLOCK)
        assert released.limits.groups[0].count * BLOCK <= 2 * 1.1 * (WINDOW + CHUNK + BLOCK)
    with pytest.MonkeyPatch.context() as patch:
        keep_everything(patch)
        with device(pack, max_model_len=length, max_seqs=1) as full:
            assert answers(full, [prompt], max_tokens) == found
            assert not full.passed and BLOCK * full.held[1] >= length - 1


def test_a_window_holds_its_tokens_only_and_says_what_the_full_cache_says(pack: Pack) -> None:
    check_long_context(pack, 2048)


@pytest.mark.slow
def test_a_window_at_a_context_of_32k(pack: Pack) -> None:
    check_long_context(pack, 32768)


def test_chunks_and_neighbours_change_no_bits(pack: Pack) -> None:
    """Chunks of one token, of a part of a block and of more than one; sequences of other lengths beside it; preemption."""
    prompts = [prompt_of(seed, length) for seed, length in ((1, 300), (2, 17), (3, 230), (4, 260))]
    with device(pack, max_model_len=512) as executor:
        alone = [answers(executor, [prompt], 12)[0] for prompt in prompts]
        for chunk in (1, 7, 64):
            options = EngineOptions(prefix_cache=False, max_prefill_chunk=chunk)
            assert answers(executor, prompts[:2], 12, options) == alone[:2], chunk
    # room for about two of them at once: the youngest are preempted
    with device(pack, max_model_len=512, max_seqs=4, kv_cache_bytes=_room(pack, 44)) as tight:
        assert answers(tight, prompts, 12) == alone


def _room(pack: Pack, blocks: int) -> int:
    return blocks * sum(state.unit_bytes for state in pack.manifest.states)


def test_prefixes_are_shared_while_their_window_is_there(pack: Pack) -> None:
    prefix = prompt_of(5, 400)
    prompts = [prefix + prompt_of(seed, 30) for seed in (6, 7)]
    with device(pack, max_model_len=512) as executor:
        alone = [answers(executor, [prompt], 8)[0] for prompt in prompts]
        engine = Engine(executor, EngineOptions())  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts):
            engine.add(str(i), prompt, greedy(8))
            (events,) = drain(engine).values()
            assert said(events) == alone[i]
            assert events[0].cached_tokens == (400 if i else 0)
        stats = engine.stats()
        assert stats.prefix_cache_hits == 1 and stats.pools[0].used == 0 < stats.pools[0].cached
        check_empty(engine)


def test_a_copied_block_of_a_window_is_the_same_in_all_its_layers(pack: Pack) -> None:
    with device(pack, max_model_len=512) as executor:
        answers(executor, [prompt_of(8, 40)], 1)
        memory = executor.blocks(1)
        source, target = int(executor.buffers.block_table[0, 1, 0]), executor.limits.groups[0].count - 1
        others = [i for i in range(len(memory)) if i != target]
        before = memory[others].copy()
        assert memory[source].any() and source != target
        executor.copy_place(0, source, target)
        assert (memory[target] == memory[source]).all() and (memory[others] == before).all()



"""Models with sliding windows, and a device on which everything that a step may not see is NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray

from ferrum.devices import pools
from ferrum.devices.base import Limits, StepBuffers
from ferrum.engine import state_groups
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.engine.state_groups import PASSED, WindowPlaces
from tests.codegen.folders import save
from tests.engine.oracle import drain

VOCAB = 96
POISON = 0xFF  # bytes of a NaN in float32 and bfloat16

Blocks = Callable[[int], NDArray[np.uint8]]


def save_model(folder: Path, window: int, mixed: bool, length: int = 32768, head_dim: int = 16) -> Path:
    """A model of two layers that both see ``window`` tokens; ``mixed``: of three, of which the first sees everything."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 2 * head_dim, "intermediate_size": 48, "num_hidden_layers": 2 + mixed,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": length, "initializer_range": 0.3,
        "sliding_window": window, "tie_word_embeddings": False,
    }  # fmt: skip
    transformers.set_seed(7)
    if mixed:
        config: Any = transformers.Qwen2Config(**sizes, use_sliding_window=True, max_window_layers=1)
        return save(transformers.Qwen2ForCausalLM(config), folder)
    return save(transformers.MistralForCausalLM(transformers.MistralConfig(**sizes, head_dim=head_dim)), folder)


class Poisoned:
    """An executor, of whose blocks only those that the queries of a step see keep their content while it runs.

    ``blocks(group)``: the memory of a group as a view, block by block. ``held``: of each group, the most blocks of a sequence
    in a step. What the tables say of blocks that were passed becomes the number of such a block.
    """

    def __init__(self, executor: Any, blocks: Blocks) -> None:
        self.executor = executor
        self.limits: Limits = executor.limits
        self.blocks = blocks
        self.held = [0] * (1 + len(self.limits.groups))
        self.passed = 0

    @property
    def buffers(self) -> StepBuffers:
        buffers: StepBuffers = self.executor.buffers
        return buffers

    def step(self) -> None:
        saved = []
        for group, window in enumerate((0, *(g.window for g in self.limits.groups))):
            memory, seen = self.blocks(group), self._seen(group, window)
            hidden = np.setdiff1d(np.arange(len(memory)), seen)
            saved.append((memory, hidden, memory[hidden].copy()))
            memory[hidden] = POISON
            table = self.buffers.block_table[: self.buffers.num_seqs, group]
            self.passed += int((table == PASSED).sum())
            table[table == PASSED] = hidden[0] if len(hidden) else 0
        self.executor.step()
        for memory, hidden, content in saved:
            memory[hidden] = content

    def _seen(self, group: int, window: int) -> NDArray[np.int32]:
        """Blocks of the group that queries of this step see."""
        b, size, seen = self.buffers, self.limits.block_size, [np.zeros(0, np.int32)]
        for s in range(b.num_seqs):
            table = b.block_table[s, group, : -(-int(b.context_len[s]) // size)]
            self.held[group] = max(self.held[group], int((table != PASSED).sum()))
            first = max(0, int(b.positions[b.query_start[s]]) - window + 1) // size if window else 0
            seen.append(table[first:])
        return np.concatenate(seen)

    def logits(self) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self.executor.logits()
        return rows

    def copy_block(self, source: int, target: int) -> None:
        self.executor.copy_block(source, target)

    def copy_place(self, group: int, source: int, target: int) -> None:
        self.executor.copy_place(group, source, target)

    def close(self) -> None:
        self.executor.close()


def blocks_of_cpu(executor: Any) -> Blocks:
    """On CPUs all blocks of a layer and head lie side by side; all heads of these models have one size."""

    def blocks(group: int) -> NDArray[np.uint8]:
        pool = executor.pools.pools[group]
        heads = 2 if len(executor.limits.groups) and group else 1
        whole: NDArray[np.uint8] = executor._kv[pool.start : pool.start + pool.num_blocks * pool.block_bytes]
        return whole.reshape(heads, pool.num_blocks, -1).swapaxes(0, 1)

    return blocks


def blocks_of_emulator(executor: Any) -> Blocks:
    def blocks(group: int) -> NDArray[np.uint8]:
        pool = executor.pools[group]
        if not pool.block_bytes:
            return np.zeros((pool.num_blocks, 0), np.uint8)
        whole: NDArray[np.uint8] = executor._pieces["kv"].at(pool.start)[0].data[: pool.num_blocks * pool.block_bytes]
        return whole.reshape(pool.num_blocks, -1)

    return blocks


def keep_everything(patch: pytest.MonkeyPatch) -> None:
    """Engines and devices made from now on release nothing of a window and have room for all of it."""
    whole: Callable[..., int] = lambda *_: 1 << 30  # noqa: E731
    patch.setattr(pools, "window_blocks", whole)
    patch.setattr(state_groups, "window_blocks", whole)
    patch.setattr(WindowPlaces, "first_seen", lambda self, num_tokens: 0)


Said = list[tuple[int, float | None, tuple[tuple[int, float], ...]]]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=20)


def answers(executor: Any, prompts: list[list[int]], max_tokens: int, options: EngineOptions | None = None) -> list[Said]:
    """What the prompts, all at once, are answered, with logprobs, whose bits are compared."""
    engine = Engine(executor, options or EngineOptions(prefix_cache=False))
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, greedy(max_tokens))
    found = drain(engine, 1 << 20)
    return [said(found[str(i), 0]) for i in range(len(prompts))]


def said(events: list[TokenEvent]) -> Said:
    return [(e.token, e.logprob, e.top) for e in events]


def prompt_of(seed: int, length: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, VOCAB, length).tolist()
    return tokens

"""Contexts of several parts: threads that share them, threads that do not, and prompts all give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ferrum.codegen.kernels.paged_attention.cpu import PART
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS
from ferrum.devices.cpu import CpuDevice, CpuExecutor
from ferrum.devices.options import DeviceOptions
from ferrum.pack.reader import open_pack
from tests.codegen.conftest import model_folder
from tests.codegen.folders import kept_pack
from tests.devices.test_contract import fill, last_logits
from tests.models.test_parity import BASE, ROPES, reference

LENGTH, CHUNK, SEQS = 2 * PART + 90, 256, 8
POSITIONS = [5, PART - 1, PART, PART + 1, PART + 300, 2 * PART - 1, 2 * PART, LENGTH - 1]
TOLERANCE = {"f32": 1e-4, "bf16": 6e-3, "int8": 2e-2}
HERE = [t.name for t in TARGETS if runs_here(t.arch, t.requires)]
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    *((target, "bf16", "qwen3", {}) for target in HERE),
    ("cpu", "f32", "qwen3", {"num_key_value_heads": 1}),
    ("cpu", "int8", "qwen3", {}),
    ("cpu", "bf16", "mistral", {"sliding_window": PART + 200}),
    ("cpu", "f32", "mistral", {"sliding_window": 100, "head_dim": 48}),
]
QUICK = (CASES[0], CASES[-2])


def ending(executor: CpuExecutor, blocks: list[int], position: int) -> list[int]:
    """``blocks`` of a sequence that ends at ``position``; the last is its own, as what lies behind an end is cleared."""
    last, own = position // 16, len(blocks) + POSITIONS.index(position)
    assert all(own < pool.num_blocks for pool in executor.pools.pools)
    executor.copy_block(blocks[last], own)
    for group in range(len(executor.pools.pools) - 1):
        executor.copy_place(group, blocks[last], own)
    return [*blocks[:last], own, *blocks[last + 1 :]]


def logits_at(executor: CpuExecutor, tokens: list[int], blocks: list[int], positions: list[int]) -> NDArray[np.float32]:
    """One step in which a sequence for each position has its token alone; all share the blocks before the last."""
    fill(executor, [(tokens[p : p + 1], p, ending(executor, blocks, p)) for p in positions])
    executor.step()
    return executor.logits().copy()


@pytest.mark.parametrize(
    ("target", "kv_dtype", "family", "changes"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_who_reads_a_context_changes_no_bit(
    run_folder: Path, target: str, kv_dtype: str, family: str, changes: dict[str, Any]
) -> None:
    values = BASE | {"rope_parameters": dict(ROPES["default"]), "max_position_embeddings": 4096} | changes
    model = reference(family, values)
    tokens = torch.randint(1, 97, (LENGTH,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0, POSITIONS].float().numpy()
    pack = kept_pack(model_folder(run_folder, family, values), target=target, kv_dtype=kv_dtype)
    blocks = np.random.default_rng(0).permutation(-(-LENGTH // 16)).tolist()
    streamed: list[NDArray[np.float32]] = []
    for threads in (1, 2, 5):  # eight sequences keep 1 or 2 threads busy, not 5
        with open_pack(pack, trust=True) as opened:
            executor = CpuDevice().load(opened, DeviceOptions(max_seqs=SEQS, max_tokens=CHUNK, num_threads=threads))
            for start in range(0, LENGTH, CHUNK):
                last_logits(executor, tokens[start : start + CHUNK], start, blocks)
            streamed = streamed or [
                last_logits(executor, tokens[p - 4 : p + 1], p - 4, ending(executor, blocks, p)) for p in POSITIONS
            ]
            together = logits_at(executor, tokens, blocks, POSITIONS)
            some = logits_at(executor, tokens, blocks, POSITIONS[::-3])[::-1]
            for i, row in enumerate(streamed):
                np.testing.assert_array_equal(row, together[i], str(POSITIONS[i]))
                own = ending(executor, blocks, POSITIONS[i])
                last_logits(executor, [tokens[POSITIONS[i]] - 1], POSITIONS[i], own)  # its key and value must be replaced
                np.testing.assert_array_equal(row, last_logits(executor, [tokens[POSITIONS[i]]], POSITIONS[i], own))
            for row, wanted in zip(some, streamed[1::3], strict=True):
                np.testing.assert_array_equal(row, wanted)
            executor.close()
    worst = np.abs(np.array(streamed) - expected).max() / np.abs(expected).max()
    assert worst <= TOLERANCE[kv_dtype]

"""Attention on GPUs in emulation: all groups of heads, all head sizes, empty sequences, a context of 100,000 tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.codegen.kernels.cases import Bench, counts, error, poison, rows_in, values_of
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.paged_attention.choose import gpu_variants
from ferrum.codegen.kernels.paged_attention.decode import DecodeAttention
from ferrum.codegen.kernels.paged_attention.gpu import GpuAttention
from ferrum.codegen.kernels.paged_attention.plain import PlainAttention
from ferrum.codegen.kernels.paged_attention.prefill import PrefillAttention
from ferrum.codegen.kernels.rope_kv import RopeKv
from ferrum.codegen.kernels.schedule import Schedule
from ferrum.codegen.layouts import to_bf16, to_f32
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.devices.emulate import SCHEDULES, GuardedBuffer, build
from ferrum.pack.launches import total

TARGETS = {"cuda": "cuda-sm80", "metal": "metal-m1"}
HEAD_DIMS = (64, 96, 128, 256)


def target_of(device: str) -> GpuTarget:
    target = BY_NAME[TARGETS[device]]
    assert isinstance(target, GpuTarget)
    return target


def bench(device: str, kernels: list[GpuKernel]) -> Bench:
    return Bench(build(render_kernels("test", kernels, target_of(device), "0" * 64), "cuda" if device == "cuda" else "metal"))


def chosen(device: str, group: int, dim: int, block_bytes: int = 0) -> list[GpuAttention]:
    """Decode with the most splits, and prefill, as packs have them."""
    fields: dict[str, Any] = {"num_heads": group, "num_kv_heads": 1, "head_dim": dim, "window": 0, "softmax_scale": dim**-0.5}
    fields |= {"kv_dtype": "bf16", "out": "bf16", "block_bytes": block_bytes or 2 * 2 * BLOCK_SIZE * dim * 2}
    target = target_of(device)
    variants = gpu_variants(fields, target)
    return [v.kernel for v in (variants[0], variants[-1])]  # type: ignore[misc]


@cache
def groups(device: str, first: int) -> tuple[Bench, list[GpuAttention]]:
    """Every fourth group from ``first``, each with another head size: four calls have all groups, and each has all head sizes."""
    pairs = [(group, HEAD_DIMS[(first + i) % 4]) for i, group in enumerate(range(first, 17, 4))]
    kernels = [kernel for group, dim in pairs for kernel in chosen(device, group, dim)]
    return bench(device, list(kernels)), kernels


@pytest.mark.parametrize("first", (1, *(pytest.param(first, marks=pytest.mark.slow) for first in (2, 3, 4))))
@pytest.mark.parametrize("device", TARGETS)
def test_groups_and_head_sizes(device: str, first: int) -> None:
    """Contexts of one key up to several splits, prompts of one tile and of several, empty sequences, tables out of order."""
    made, kernels = groups(device, first)
    random = np.random.default_rng(first)
    for i, kernel in enumerate(kernels):
        decode = (((1, 1), (16, 1), (17, 1)), ((300, 1), (5, 0), (33, 1), (2, 2)))
        prefill = (((2, 2), (40, 0), (70, 7), (3, 1)), ((5, 0), (65, 65)))
        for j, lengths in enumerate(prefill if isinstance(kernel, PrefillAttention) else decode):
            schedule = SCHEDULES[(i + j + first) % len(SCHEDULES)]
            found = Bench(made.module, schedule).error(kernel, kernel.case(random, lengths))
            assert found <= 1e-2, (kernel, lengths, str(schedule), found)


@pytest.mark.parametrize(("device", "keys"), (("cuda", 64), ("metal", 128)))
def test_many_blocks_share_a_short_context(device: str, keys: int) -> None:
    """Of a sequence that is alone each block takes few keys: most of the GPU has nothing else to do."""
    made, kernels = groups(device, 1)
    kernel = kernels[0]
    assert isinstance(kernel, DecodeAttention)
    case = kernel.case(np.random.default_rng(2), ((256, 1),))
    parts = made.run(kernel, case.arrays, case.rows)["scratch:attention_parts"].reshape(-1, 4 * kernel.part_floats)
    assert (parts != 0xFF).any(1).sum() == 256 // keys


@pytest.mark.parametrize("device", TARGETS)
def test_a_step_with_empty_sequences_is_scheduled(device: str) -> None:
    kernels = [Schedule(tile) for tile in (3, 64)]
    made = bench(device, list(kernels))
    for kernel in kernels:
        for schedule in SCHEDULES:
            for lengths in ((0, 3), (1, 0, 0, 70, 0), (2, 0, 2)):
                assert Bench(made.module, schedule).error(kernel, kernel.case(np.random.default_rng(0), lengths)) == 0


# A cache whose addresses pass 4 GiB; of its blocks only a few are touched.
STRIDE, BLOCKS, LENGTH, NEW = 3 << 20, 1500, 100_000, 3


@cache
def long_context(device: str) -> tuple[Bench, list[GpuKernel]]:
    kernels: list[GpuKernel] = [*chosen(device, 2, 64, STRIDE)]
    kernels.append(PlainAttention(2, 1, 64, 0, 0.125, "bf16", "bf16", STRIDE))
    kernels.append(RopeKv(2, 1, 64, 64, False, 1e-6, "bf16", STRIDE))
    return bench(device, kernels), kernels


@pytest.mark.parametrize("which", (0, 1, 2), ids=("decode", "prefill", "plain"))
@pytest.mark.parametrize("device", TARGETS)
def test_attention_over_100k_tokens(device: str, which: int) -> None:
    """6,250 blocks in a table; most of them are the same few."""
    made, kernels = long_context(device)
    kernel, random = kernels[which], np.random.default_rng(0)
    assert isinstance(kernel, GpuAttention)
    new = 1 if which == 0 else NEW
    cache = GuardedBuffer(STRIDE * BLOCKS)
    places = np.array([0, 1, 700, 1400, BLOCKS - 1])
    raw = to_bf16(random.normal(size=(len(places), 2, BLOCK_SIZE, 64)).astype(np.float32)).reshape(len(places), -1)
    for place, block in zip(places, raw, strict=True):
        cache.data[int(place) * STRIDE :][: block.nbytes] = block.view(np.uint8)
    table = random.integers(0, len(places), -(-LENGTH // BLOCK_SIZE))
    q, meant = rows_in(random.normal(size=(new, 128)).astype(np.float32), "bf16")
    rows = counts(new, blocks_per_seq=len(table))
    starts, tables = np.array([0, new], np.int32), places[table].astype(np.int32)[None]
    positions = np.arange(LENGTH - new, LENGTH, dtype=np.int32)
    arrays: dict[str, Any] = {"value:0": q, "state": cache, "result": poison((new, 128), "bf16"), "input:positions": positions}
    arrays |= {"input:query_start": starts, "input:context_len": np.array([LENGTH], np.int32), "table:0": tables}
    arrays |= {"scratch:token_seq": np.zeros(new, np.int32)}
    if isinstance(kernel, PrefillAttention):
        schedule = Schedule(kernel.tile_tokens)
        count = total(schedule.tiles, rows)
        arrays[f"scratch:{schedule.tiles_name}"] = Schedule.reference(positions, starts, tables, kernel.tile_tokens, count)[2]
    made.run(kernel, arrays, rows)
    blocks = to_f32(raw).reshape(len(places), 2, BLOCK_SIZE, 64)[table]
    keys, values = blocks.transpose(1, 0, 2, 3).reshape(2, -1, 1, 64)[:, :LENGTH]
    expected = kernel.reference(meant.reshape(new, 2, 64), keys, values, 0.125, 0)
    assert error(values_of(arrays["result"], 128), expected.reshape(new, -1)) <= 1e-2


@pytest.mark.parametrize("device", TARGETS)
def test_new_keys_land_beyond_4_gib(device: str) -> None:
    made, kernels = long_context(device)
    kernel, random = kernels[3], np.random.default_rng(1)
    assert isinstance(kernel, RopeKv)
    slots = np.array([(BLOCKS - 1) * BLOCK_SIZE + 5, 700 * BLOCK_SIZE, 3], np.int32)
    x = random.normal(size=(3, 4, 64)).astype(np.float32)
    angle = random.uniform(0, 1e5, (3, 32))
    turns = np.concatenate([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    cache, q = GuardedBuffer(STRIDE * BLOCKS), poison((3, 128), "bf16")
    arrays: dict[str, Any] = {"value:0": x.reshape(3, -1), "value:1": turns, "scratch:token_slot": slots}
    arrays |= {"state": cache, "result": q}
    made.run(kernel, arrays, counts(3))
    expected = kernel.reference(x[:, :3], None, turns, 64, 1e-6)
    assert error(values_of(q, 128), expected[:, :2].reshape(3, -1)) <= 1e-2
    for slot, keys, values in zip(slots, expected[:, 2], x[:, 3], strict=True):
        layer: NDArray[Any] = cache.view(np.uint16, 2 * BLOCK_SIZE * 64, int(slot) // BLOCK_SIZE * STRIDE)
        found = to_f32(layer.copy()).reshape(2, BLOCK_SIZE, 64)[:, slot % BLOCK_SIZE]
        assert error(found, np.stack([keys, values])) <= 1e-2

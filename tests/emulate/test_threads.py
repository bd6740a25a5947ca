"""Threads, warps and blocks: what CUDA promises of them, under every schedule."""

from __future__ import annotations

import numpy as np
import pytest

from ferrum.devices.emulate import SCHEDULES, Schedule
from tests.emulate.sources import module

KERNELS = "threads.cu"
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@every_schedule
def test_every_thread_of_every_block_runs_once(schedule: Schedule) -> None:
    out = np.full((2 * 3 * 2, 4 * 3 * 5, 4), -1, np.int32)
    stats = module(KERNELS).launch("places", grid=(2, 3, 2), block=(4, 3, 5), args=[out], schedule=schedule)
    z, y, x = np.indices((5, 3, 4)).reshape(3, -1)
    assert (out[:, :, 0] == np.arange(12)[:, None]).all()
    assert (out[:, :, 1] == x).all() and (out[:, :, 2] == y).all() and (out[:, :, 3] == z).all()
    assert stats.threads == 12 * 60


@every_schedule
@pytest.mark.parametrize(("threads", "width", "by"), [(64, 32, 1), (64, 8, 3), (96, 16, 5), (32, 32, 31)])
def test_shuffles(schedule: Schedule, threads: int, width: int, by: int) -> None:
    values = np.random.default_rng(by).integers(0, 1000, threads, np.int32)
    out = np.zeros((4, threads), np.int32)
    module(KERNELS).launch("shuffles", grid=(1,), block=(threads,), args=[out, values, width, by], schedule=schedule)
    lane = np.arange(threads)
    segment = lane // width * width
    expected = [segment + by % width, lane ^ by, lane - by, lane + by]
    for row, source in zip(out, expected, strict=True):
        inside = source // width == lane // width
        np.testing.assert_array_equal(row, np.where(inside, values[np.where(inside, source, 0)], values))


@every_schedule
def test_a_last_warp_that_is_not_full(schedule: Schedule) -> None:
    values = np.arange(45, dtype=np.int32)
    out = np.zeros((6, 45), np.uint32)
    module(KERNELS).launch("votes", grid=(1,), block=(45,), args=[out, values], schedule=schedule)
    assert out[0, 32:].tolist() == [sum(1 << lane for lane in range(13) if (32 + lane) & 1)] * 13
    assert out[4, 32:].tolist() == [sum(range(32, 45))] * 13


@every_schedule
def test_votes_matches_and_reductions(schedule: Schedule) -> None:
    values = np.random.default_rng(3).integers(0, 100, 64, np.int32)
    out = np.zeros((6, 64), np.uint32)
    module(KERNELS).launch("votes", grid=(1,), block=(64,), args=[out, values], schedule=schedule)
    for t in range(64):
        warp, half = values[t // 32 * 32 :][:32], values[t // 16 * 16 :][:16]
        assert out[0, t] == sum(1 << i for i in range(32) if warp[i] & 1)
        assert out[1, t] == int((half > 90).any()) + 2 * int((half > 3).all())
        assert out[2, t] == sum(1 << i for i in range(32) if warp[i] % 5 == values[t] % 5)
        assert out[3, t] == (0xFFFF0000 if t & 16 else 0xFFFF)  # all are below 100
        assert out[4, t] == half.sum()
        assert np.int32(np.uint32(out[5, t])) == warp.min() - 50


@every_schedule
def test_votes_of_a_block(schedule: Schedule) -> None:
    values = np.arange(100, dtype=np.int32)
    out = np.zeros((3, 100), np.int32)
    module(KERNELS).launch("block_votes", grid=(1,), block=(100,), args=[out, values], schedule=schedule)
    assert (out[0] == 1).all() and (out[1] == 1).all() and (out[2] == 50).all()


@every_schedule
def test_atomics_in_shared_and_global_memory(schedule: Schedule) -> None:
    values = np.random.default_rng(4).integers(0, 5000, 1000, np.int32)
    bins, most = np.zeros(8, np.int32), np.zeros(1, np.uint32)
    module(KERNELS).launch("histogram", grid=(8,), block=(128,), args=[bins, most, values, 1000], schedule=schedule)
    np.testing.assert_array_equal(bins, np.bincount(values & 7, minlength=8))
    assert most[0] == values.max()


@every_schedule
def test_shared_memory_is_poisoned_for_every_block(schedule: Schedule) -> None:
    out = np.zeros((5, 2), np.int32)
    module(KERNELS).launch("untouched", grid=(5,), block=(4,), args=[out], shared=16, schedule=schedule)
    assert (out == (0x7E7E7E7E if schedule.order == "reverse" else -1)).all()


@every_schedule
def test_threads_that_exited_are_not_waited_for(schedule: Schedule) -> None:
    out = np.zeros(32, np.int32)
    module(KERNELS).launch("leavers", grid=(1,), block=(64,), args=[out], schedule=schedule)
    assert (out == 32).all()


@every_schedule
@pytest.mark.parametrize("kernel", ["handover", "phases"])
def test_barriers_for_a_part_of_the_block(schedule: Schedule, kernel: str) -> None:
    out = np.zeros((7, 32), np.int32)
    module(KERNELS).launch(kernel, grid=(1,), block=(64,), args=[out, 7], schedule=schedule)
    step = 32 if kernel == "handover" else 1
    np.testing.assert_array_equal(out, np.arange(7)[:, None] * step + np.arange(31, -1, -1))


@every_schedule
def test_the_last_block_sees_what_all_have_written(schedule: Schedule) -> None:
    total, parts, arrived = np.zeros(32, np.float32), np.zeros((10, 32), np.float32), np.zeros(1, np.uint32)
    module(KERNELS).launch("last_block", grid=(10,), block=(32,), args=[total, parts, arrived], schedule=schedule)
    assert (total == 55).all() and arrived[0] == 0


def ran_in(schedule: Schedule) -> list[int]:
    out, counter = np.zeros(4 * 64 * 2, np.int32), np.zeros(1, np.int32)
    module(KERNELS).launch("order", grid=(4,), block=(64,), args=[out, counter], schedule=schedule)
    return out.tolist()


def test_orders_are_what_they_are_called_and_repeat_themselves() -> None:
    forward, backward = ran_in(Schedule("forward")), ran_in(Schedule("reverse"))
    assert forward[:32] == list(range(32)) and sorted(forward) == sorted([*range(256)] * 2)
    assert backward[:32] == list(range(255, 223, -1))
    first, again, other = (ran_in(Schedule("random", seed=seed)) for seed in (1, 1, 2))
    assert first == again and len({tuple(forward), tuple(backward), tuple(first), tuple(other)}) == 4


def test_arguments_of_every_size_and_what_the_source_says() -> None:
    pair = np.array([(2.0, 10.0)], np.dtype([("low", "f4"), ("high", "f4")]))[0]
    values, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    kernels = module(KERNELS)
    kernels.launch("by_value", grid=(1,), block=(64,), args=[out, pair, values, np.float64(0.5), np.int16(-3)])
    np.testing.assert_array_equal(out, 2 * values + 10 + 0.5 - 3)
    info = kernels.kernels["by_value"]
    assert info.max_threads == 64 and info.shared == 512 and info.params == (0, 8, 0, 8, 2)
    assert "not_a_kernel_of_its_own" not in kernels.kernels and kernels.kernels["order"].max_threads == 0

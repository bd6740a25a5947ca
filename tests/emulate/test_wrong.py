"""Faults that end a launch: each is reported with its kernel and block, and the next launch is as good as new."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ferrum.devices.emulate import SCHEDULES, GuardedBuffer, KernelFault, Schedule
from ferrum.devices.emulate.module import Argument
from tests.emulate.sources import module

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
ONES = np.ones(64, np.float32)


def fault(name: str, args: Sequence[Argument], schedule: Schedule = SCHEDULES[0], block: int = 64, **more: int) -> str:
    kernels = module("wrong.cu")
    with pytest.raises(KernelFault) as caught:
        kernels.launch(name, grid=(1,), block=(block,), args=args, schedule=schedule, **more)
    assert caught.value.code == "kernel-fault" and name in caught.value.where
    out = np.zeros(64, np.float32)
    kernels.launch("copy", grid=(1,), block=(64,), args=[out, ONES, 64, 0], schedule=schedule)
    assert (out == 1).all()
    return caught.value.what


def out() -> np.ndarray:
    return np.zeros(64, np.int32)


@every_schedule
def test_barriers_that_part_of_the_block_reaches(schedule: Schedule) -> None:
    assert "different barriers" in fault("parted", [out()], schedule)
    assert "no thread can go on" in (text := fault("half_waits", [out()], schedule))
    assert "__syncthreads at line" in text and "__shfl_sync" in text
    assert "threads 64 to 95 in bar.sync" in fault("barrier_never_full", [np.zeros(96, np.int32)], Schedule(), block=96)
    assert "bar.sync for 64 threads" in fault("barrier_never_full", [out()], schedule, block=32)


@every_schedule
def test_collectives_that_lanes_do_not_agree_on(schedule: Schedule) -> None:
    assert "lacks the calling lane" in fault("lane_missing", [out()], schedule)
    assert "meet in" in fault("two_kinds", [out()], schedule)
    assert "lane 20, which takes no part" in fault("shuffle_from_nobody", [out()], schedule)


@pytest.mark.parametrize("size", [60, 61, 63, 4096])
def test_the_first_element_outside_of_an_array(size: int) -> None:
    end, start = Schedule(guard="end"), Schedule(guard="start")
    inside = -(-4 * size // 16) * 4 - size  # elements of rounding: stores there are found when the launch is over
    target, source = np.zeros(size, np.float32), np.zeros(size + inside, np.float32)
    past = fault("copy", [target, source, size + inside + 1, size + inside - 63], end)
    assert f"0 bytes past the {4 * (size + inside)} bytes of buffer 1" in past
    if inside:
        assert "a store past" in fault("copy", [target, source, size + 1, size - 63], end)
    before = fault("copy", [target, source, size, -1], start)
    assert "4 bytes before buffer" in before


def test_a_store_past_the_end_of_a_buffer_that_stays() -> None:
    buffer = GuardedBuffer(10)
    assert buffer.intact() and buffer.view(np.uint16, 2, 4).shape == (2,)
    buffer._slack[0] = 0
    assert not buffer.intact()


def test_accesses_that_are_not_aligned() -> None:
    wide = np.zeros((8, 4), np.float32)
    assert "not a multiple" in fault("wide_load", [wide, ONES, 1], block=8)
    assert "not a multiple" in fault("unaligned_copy", [ONES.copy(), ONES], block=32)


def test_dynamic_shared_memory_has_an_end() -> None:
    assert "past the 256 bytes of dynamic shared memory" in fault("dynamic_tail", [ONES.copy(), 65], shared=256)


def test_a_launch_that_does_not_end() -> None:
    assert "within 1 seconds" in fault("forever", [np.zeros(1, np.int32)], block=1, seconds=1)


def test_undefined_arithmetic_and_endless_recursion() -> None:
    assert "division" in fault("division", [out(), 0])
    assert "stack" in fault("deep", [out(), 1000], block=1)


def test_launches_that_a_driver_refuses() -> None:
    kernels = module("wrong.cu")
    for grid, block in (((0,), (1,)), ((1,), (1025,)), ((1,), (1, 1, 65)), ((1, 70000), (1,))):
        with pytest.raises(KernelFault, match="a launch of"):
            kernels.launch("copy", grid=grid, block=block, args=[ONES.copy(), ONES, 0, 0])
    assert "bound is 64" in fault("bounded", [np.zeros(65, np.int32)], block=65)
    assert "3 arguments for 4" in fault("copy", [ONES.copy(), ONES, 64])
    assert "not alike" in fault("copy", [ONES.copy(), 3, 64, 0])
    assert "8 bytes, and its parameter 4" in fault("copy", [ONES.copy(), ONES, np.int64(64), 0])
    assert "shared memory" in fault("dynamic_tail", [ONES.copy(), 1], shared=300_000)

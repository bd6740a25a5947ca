"""Faults planted in right kernels: each is found under some schedule, and the kernel as it stands under none."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from ferrum.devices.emulate import SCHEDULES, KernelFault, Module, Schedule
from tests.emulate.sources import module


def gemm_cuda(kernels: Module, schedule: Schedule) -> float:
    m, n, k = 100, 70, 256
    random = np.random.default_rng(1)
    a, b = (random.normal(size=(rows, k)).astype(ml_dtypes.bfloat16) for rows in (m, n))
    c = np.full((m, n), np.nan, np.float32)
    kernels.launch("gemm", grid=(2, 2), block=(128,), args=[c, a, b, m, n, k], schedule=schedule)
    return float(np.abs(c - a.astype(np.float32) @ b.astype(np.float32).T).max())


def gemm_metal(kernels: Module, schedule: Schedule) -> float:
    m, n, k = 45, 70, 80
    random = np.random.default_rng(2)
    a, b = (random.normal(size=(rows, k)).astype(np.float16) for rows in (m, n))
    c, shape = np.full((m, n), np.nan, np.float32), np.array([m, n, k], np.uint32)
    kernels.launch("gemm", grid=(3, 2), block=(128,), args=[a, b, c, shape], shared=2048, schedule=schedule)
    return float(np.abs(c - a.astype(np.float32) @ b.astype(np.float32).T).max())


def last_block(kernels: Module, schedule: Schedule) -> float:
    total, parts, arrived = np.zeros(32, np.float32), np.zeros((10, 32), np.float32), np.zeros(1, np.uint32)
    kernels.launch("last_block", grid=(10,), block=(32,), args=[total, parts, arrived], schedule=schedule)
    return float(np.abs(total - 55).max() + arrived[0])


RUNS: dict[str, Callable[[Module, Schedule], float]] = {
    "gemm.cu": gemm_cuda,
    "gemm.metal": gemm_metal,
    "threads.cu": last_block,
}

# (source, fault, text, text with the fault)
FAULTS = [
    ("gemm.cu", "missing barrier", "    __syncthreads();\n    const int next", "    const int next"),
    ("gemm.cu", "missing wait", "    emu_cp_async_wait(STAGES - 2);\n", ""),
    ("gemm.cu", "wait for one group too few", "emu_cp_async_wait(STAGES - 2)", "emu_cp_async_wait(STAGES - 1)"),
    ("gemm.cu", "a stage that is still read is filled", "next = step + STAGES - 1;", "next = step + STAGES;"),
    ("gemm.cu", "swapped fragment", "lane / 16 * 8], 4", "lane / 8 % 2 * 8], 4"),
    ("gemm.cu", "transposed fragment", "* 8], 2, false", "* 8], 2, true"),
    ("gemm.cu", "rows of the result swapped", "lane / 4 + e / 2 * 8", "lane / 4 + e % 2 * 8"),
    ("gemm.cu", "unguarded tail of the result", "if (row < m && column < n) c[", "c["),
    ("gemm.cu", "unguarded tail of the input", "bool inside = first + row < rows", "bool inside = true"),
    ("gemm.cu", "off by one in the tail", "first + row < rows", "first + row <= rows"),
    ("gemm.cu", "wrong stride", "c[(size_t)row * n + column]", "c[(size_t)row * m + column]"),
    ("gemm.cu", "rows that are not aligned", "STRIDE = DEPTH + 8", "STRIDE = DEPTH + 4"),
    ("gemm.cu", "barrier in a branch", "__syncthreads();\n    const int next", "if (warp) __syncthreads();\n    const int next"),
    ("gemm.cu", "half of the warp at a product", "emu_mma_m16n8k16_bf16(sum", "if (lane < 16) emu_mma_m16n8k16_bf16(sum"),
    ("gemm.metal", "missing barrier before reading", "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    for", "    for"),
    ("gemm.metal", "missing barrier after reading", "    threadgroup_barrier(mem_flags::mem_threadgroup);\n  }\n", "  }\n"),
    ("gemm.metal", "operand not transposed", "ulong2(0, 0), true", "ulong2(0, 0), false"),
    ("gemm.metal", "off by one in the tail", "if (first + row < rows)", "if (first + row <= rows)"),
    ("gemm.metal", "identity for zero", "make_filled_simdgroup_matrix<float, 8, 8>(0.0f)", "simdgroup_float8x8(1.0f)"),
    ("threads.cu", "missing fence", "  __threadfence();\n  __syncthreads();\n  if", "  __syncthreads();\n  if"),
    ("threads.cu", "counter not put back", "*arrived = 0", "*total = *total"),
]


def found(kernels: Module, run: Callable[[Module, Schedule], float]) -> list[str]:
    """The schedules under which the kernels fail."""
    failed = []
    for schedule in SCHEDULES:
        try:
            worst = run(kernels, schedule)
        except KernelFault:
            worst = np.inf
        if not worst < 1e-3:
            failed.append(str(schedule))
    return failed


@pytest.mark.parametrize("name", RUNS)
def test_right_kernels_pass_under_every_schedule(name: str) -> None:
    assert found(module(name), RUNS[name]) == []


@pytest.mark.parametrize(("name", "fault", "old", "new"), FAULTS, ids=[f"{name}: {fault}" for name, fault, _, _ in FAULTS])
def test_planted_faults_are_found(name: str, fault: str, old: str, new: str) -> None:
    assert found(module(name, old, new), RUNS[name]), fault


def test_late_and_eager_copies_find_different_faults() -> None:
    missing_wait = module("gemm.cu", "    emu_cp_async_wait(STAGES - 2);\n", "")
    assert gemm_cuda(missing_wait, Schedule(copies="eager")) < 1e-3
    assert not gemm_cuda(missing_wait, Schedule(copies="late")) < 1e-3

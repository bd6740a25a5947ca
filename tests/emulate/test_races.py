"""Races in shared memory are found under every schedule, whatever the numbers that come out."""

from __future__ import annotations

import numpy as np
import pytest

from ferrum.devices.emulate import SCHEDULES, KernelFault, Schedule, build
from tests.emulate.sources import text
from tests.emulate.test_planted import gemm_cuda, gemm_metal

KERNELS = """
extern "C" __global__ void of_a_warp(int *out, int first, int second) {
  __shared__ int item[32];
  item[threadIdx.x] = threadIdx.x;
  const int one = __shfl_xor_sync(0xffffffffu, 1, 1);
  if (first) __syncwarp();
  out[threadIdx.x] = item[31 - threadIdx.x] + one;
  if (second) __syncwarp();
  item[threadIdx.x] = 7;
}
extern "C" __global__ void of_a_block(int *out, int first, int second) {
  extern __shared__ int item[];
  item[threadIdx.x] = threadIdx.x;
  if (first) __syncthreads();
  else __syncwarp();
  out[threadIdx.x] = item[blockDim.x - 1 - threadIdx.x];
  if (second) __syncthreads();
  item[threadIdx.x] = 7;
}
extern "C" __global__ void none(int *out, int n) {
  __shared__ int sum;
  __shared__ unsigned char bytes[64];
  if (threadIdx.x == 0) sum = 0;
  bytes[threadIdx.x] = threadIdx.x;
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    atomicAdd(&sum, bytes[(threadIdx.x + i) % 64]);
    __syncthreads();
    out[threadIdx.x] = sum + bytes[threadIdx.x];
    __syncthreads();
    bytes[threadIdx.x] += 1;
    __syncthreads();
  }
}
"""
METAL = """
#include <metal_stdlib>
using namespace metal;
kernel void flags(device int *out [[buffer(0)]], constant int &with_threadgroup [[buffer(1)]],
                  uint index [[thread_position_in_threadgroup]]) {
  threadgroup int item[64];
  item[index] = index;
  threadgroup_barrier(with_threadgroup ? mem_flags::mem_threadgroup : mem_flags::mem_device);
  out[index] = item[63 - index];
}
"""
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@every_schedule
@pytest.mark.parametrize(("kernel", "threads"), [("of_a_warp", 32), ("of_a_block", 64)])
def test_each_missing_barrier_is_a_race(schedule: Schedule, kernel: str, threads: int) -> None:
    module = build(KERNELS, "cuda", checks="races")

    def run(first: int, second: int) -> None:
        out = np.zeros(threads, np.int32)
        module.launch(kernel, grid=(2,), block=(threads,), args=[out, first, second], shared=256, schedule=schedule)

    run(1, 1)
    with pytest.raises(KernelFault, match="a race in shared memory: a load at .* and a store at|a store at .* and a load at"):
        run(0, 1)
    with pytest.raises(KernelFault, match="a race in shared memory"):
        run(1, 0)


@every_schedule
def test_what_is_ordered_is_no_race(schedule: Schedule) -> None:
    out = np.zeros(64, np.int32)
    build(KERNELS, "cuda", checks="races").launch("none", grid=(2,), block=(64,), args=[out, 5], schedule=schedule)
    assert gemm_cuda(build(text("gemm.cu"), "cuda", checks="races"), schedule) < 1e-3


def test_the_lines_are_named() -> None:
    module = build(KERNELS, "cuda", checks="races")
    with pytest.raises(KernelFault) as caught:
        module.launch("of_a_warp", grid=(1,), block=(32,), args=[np.zeros(32, np.int32), 0, 1])
    assert "line 7" in caught.value.what and "line 4" in caught.value.what or "+0x" in caught.value.what


def test_metal_barriers_order_what_they_are_told_to() -> None:
    module = build(METAL, "metal", checks="races")
    out = np.zeros(64, np.int32)
    module.launch("flags", grid=(1,), block=(64,), args=[out, 1])
    with pytest.raises(KernelFault, match="a race"):
        module.launch("flags", grid=(1,), block=(64,), args=[out, 0])
    assert gemm_metal(build(text("gemm.metal"), "metal", checks="races"), SCHEDULES[0]) < 1e-3

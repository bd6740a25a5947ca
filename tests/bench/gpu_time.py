"""Times on the GPU's own clock: recordings, launches of one kernel, and what the machine can do at most."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ferrum.devices.cuda import CudaExecutor
from ferrum.devices.launching import ResolvedLaunch

# One source for the ceilings: bytes read by all blocks, and matrix instructions without memory.
CEILINGS = r"""
extern "C" __global__ void __launch_bounds__(256) read_all(const uint4 *data, unsigned long long n, unsigned *out) {
  unsigned sum = 0;
  const unsigned long long step = (unsigned long long)gridDim.x * 256 * 8;
  for (unsigned long long i = (unsigned long long)blockIdx.x * 256 * 8 + threadIdx.x; i + 7 * 256 < n; i += step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[j].x), "=r"(v[j].y), "=r"(v[j].z), "=r"(v[j].w) : "l"(data + i + j * 256));
#pragma unroll
    for (int j = 0; j < 8; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678u) *out = sum;
}
extern "C" __global__ void __launch_bounds__(256) mma_all(int rounds, float *out) {
  float d[8][4] = {};
  unsigned a[4] = {0x3f803f80u + threadIdx.x, 0x3f813f80u, 0x3f803f82u, 0x3f833f80u}, b[2] = {0x3f803f84u, 0x3f853f80u};
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  if (sum == 1.2345f) *out = sum;
}
"""
_READ_BYTES = 2 << 30
_MMA_ROUNDS = 4096


def seconds(executor: CudaExecutor, work: Callable[[], None], repeats: int = 1, samples: int = 5) -> list[float]:
    """Times of ``work``, which enqueues on the executor's stream; each sample is the mean of ``repeats``."""
    call, stream = executor._call, executor._stream
    with contextlib.ExitStack() as release:
        start, end = (call("cuEventCreate", 0) for _ in range(2))
        for event in (start, end):
            release.callback(call, "cuEventDestroy", event)
        work()
        found = []
        for _ in range(samples):
            call("cuEventRecord", start, stream)
            for _ in range(repeats):
                work()
            call("cuEventRecord", end, stream)
            call("cuEventSynchronize", end)
            found.append(float(call("cuEventElapsedTime", start, end)) / 1e3 / repeats)
    return found


def time_launches(executor: CudaExecutor, steps: Iterable[ResolvedLaunch], repeats: int, samples: int = 5) -> list[float]:
    """Times of one pass over ``steps``, in a graph of ``repeats`` passes so that the host does not show."""
    call, stream = executor._call, executor._stream
    call("cuStreamBeginCapture", stream, executor._cuda.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    chosen = list(steps)
    for number in range(repeats):
        for i, step in enumerate(chosen):
            executor._enqueue_launch(step, early=step.early and number + i > 0)
    graph = call("cuStreamEndCapture", stream)
    executable = call("cuGraphInstantiate", graph, 0)
    call("cuGraphDestroy", graph)
    try:
        found = seconds(executor, lambda: call("cuGraphLaunch", executable, stream), samples=samples)
    finally:
        call("cuGraphExecDestroy", executable)
    return [value / repeats for value in found]


def ceilings(executor: CudaExecutor, cubin: bytes) -> dict[str, float]:
    """``cubin``: of ``CEILINGS``. GB/s of copying and of reading, TFLOP/s of bf16 matrix instructions (``mma.sync``)."""
    found = {"copy_gb_per_s": executor.measure_roofs()["read_gb_per_s"]}
    call, stream = executor._call, executor._stream
    code = np.frombuffer(cubin, np.uint8)
    with contextlib.ExitStack() as release:
        library = call("cuLibraryLoadData", code.ctypes.data, [], [], 0, [], [], 0)
        release.callback(call, "cuLibraryUnload", library)
        read, mma = (call("cuKernelGetFunction", call("cuLibraryGetKernel", library, n)) for n in (b"read_all", b"mma_all"))
        size = min(_READ_BYTES, executor.free_memory() // 2) // 4096 * 4096
        memory = call("cuMemAlloc", size)
        release.callback(call, "cuMemFree", memory)
        release.callback(call, "cuStreamSynchronize", stream)
        call("cuMemsetD8Async", memory, 0x5A, size, stream)
        blocks = 8 * executor.gpu.multiprocessors

        def launch(function: Any, *values: Any) -> None:
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            call("cuLaunchKernel", function, blocks, 1, 1, 256, 1, 1, 0, stream, ctypes.addressof(pointers), 0)

        pointer = ctypes.c_uint64(int(memory))
        count = ctypes.c_uint64(size // 16)
        best = min(seconds(executor, lambda: launch(read, pointer, count, pointer)))
        found["read_gb_per_s"] = size / best / 1e9
        rounds = ctypes.c_int32(_MMA_ROUNDS)
        best = min(seconds(executor, lambda: launch(mma, rounds, pointer)))
        # 8 warps a block, 8 instructions a round, 16 x 8 x 16 multiplications and additions each
        found["mma_bf16_tflops"] = blocks * 8 * _MMA_ROUNDS * 8 * 2 * 16 * 8 * 16 / best / 1e12
    return found


def middle(values: list[float]) -> float:
    return float(statistics.median(values))

"""Run in a process of its own, into which AddressSanitizer's library was loaded: ``python -m tests.emulate.sanitized NAME``.

NAME is a kernel of the fault list, or ``overrun N``: a kernel that reads N elements past an array in shared memory.
"""

from __future__ import annotations

import sys

import numpy as np

from ferrum.devices.emulate import SCHEDULES, build

OVERRUN = """
extern "C" __global__ void overrun(int *out, int by) {
  __shared__ int first[40];
  __shared__ int second[40];
  first[threadIdx.x] = second[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = first[threadIdx.x + by] + second[threadIdx.x];
}
"""


def main(name: str, by: int = 0) -> None:
    if name == "overrun":
        module = build(OVERRUN, "cuda", checks="bounds")
        out = np.zeros(40, np.int32)
        for schedule in SCHEDULES:
            module.launch(name, grid=(2,), block=(40,), args=[out, by], schedule=schedule)
        assert (out == 2).all()
    else:
        from tests.emulate.test_faults import caught, rendered

        assert caught(name, build(rendered(name), "cuda", checks="bounds")) is None
    print("nothing found")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

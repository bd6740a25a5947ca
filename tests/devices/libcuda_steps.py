"""What the CUDA device is put through on the stand-in in Python and, as a program, on the one in C: ``PACK``."""

from __future__ import annotations

import sys
from pathlib import Path

from ferrum.devices import cuda
from ferrum.devices.cuda import CudaDevice, CudaExecutor
from ferrum.devices.options import DeviceOptions
from ferrum.pack.reader import open_pack
from tests.devices.test_contract import fill, prompt

OPTIONS = DeviceOptions(max_seqs=4, max_samples=8, max_tokens=12)
ROOF_BYTES = 1 << 16


def put_through(executor: CudaExecutor) -> None:
    """Steps of both phases, one ahead of another, rare inputs, logits, a copied block, a measurement, the end."""
    fill(executor, [(prompt(executor, 5), 0, [0, 1])])
    executor.step()
    executor.logits()
    buffers = fill(executor, [(prompt(executor, 1), 5, [0, 1])])
    buffers.penalty_start[1] = 2
    executor.begin()
    fill(executor, [(prompt(executor, 1), 6, [0, 1])])
    executor.begin(ahead=True)
    executor.finish()
    executor.finish()
    executor.copy_block(0, 1)
    executor.measure_roofs()
    executor.close()


if __name__ == "__main__":
    cuda._ROOF_BYTES = ROOF_BYTES
    with open_pack(Path(sys.argv[1]), trust=True) as pack:
        put_through(CudaDevice().load(pack, OPTIONS))

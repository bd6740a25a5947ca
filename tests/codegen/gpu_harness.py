"""Runs single GPU kernels in emulation: a kernel rendered alone, launched with arrays by the names of its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.emulate import SCHEDULES, Module, Schedule, build
from ferrum.codegen.kernels.gpu_base import GpuKernel
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.pack.launches import RowCounts, Rows, total

Arrays = Mapping[str, NDArray[np.generic]]
SM80 = "cuda-sm80"


def gpu(name: str = SM80) -> GpuTarget:
    target = BY_NAME[name]
    assert isinstance(target, GpuTarget)
    return target


@cache
def module(kernel: GpuKernel, target: str = SM80) -> Module:
    return build(render_kernels("test", [kernel], gpu(target), "0" * 64), "metal" if target.startswith("metal") else "cuda")


def counts(tokens: int, seqs: int = 1, samples: int = 1, blocks_per_seq: int = 1) -> RowCounts:
    return RowCounts(tokens=tokens, samples=samples, seqs=seqs, blocks_per_seq=blocks_per_seq, adjust=64, mask_words=1)


def run(
    kernel: GpuKernel,
    arrays: Arrays,
    rows: RowCounts,
    kind: Rows = "tokens",
    schedule: Schedule = SCHEDULES[0],
    target: str = SM80,
) -> dict[str, NDArray[np.uint8]]:
    """Launch ``kernel`` for ``rows``; the bytes of its scratch afterwards. ``arrays`` by argument, those that are results too.

    "count" is ``rows`` of ``kind`` unless it is among the arrays. Scratch that is not among them starts as poison, or as zeros
    where the kernel says so, and counters must be zero again at the end.
    """
    scratch = {f"scratch:{name}": (s, total(s.terms, rows)) for name, s in kernel.scratch().items()}
    made = {name: np.full(size, 0 if s.zero else 0xFF, np.uint8) for name, (s, size) in scratch.items() if name not in arrays}
    args: list[NDArray[np.generic] | int] = []
    for arg in kernel.args:
        if arg in arrays:
            args.append(arrays[arg])
        elif arg in made:
            args.append(made[arg])
        elif arg == "count":
            args.append(np.array([getattr(rows, kind)], np.int32))
        elif arg.startswith("limit:"):
            args.append(int(getattr(rows, arg[6:])))
        else:
            args.append(np.array([getattr(rows, arg.removeprefix("input:num_"))], np.int32))
    geometry = kernel.geometry(kind)
    grid = [max(1, total(axis, rows)) for axis in geometry.grid]
    module(kernel, target).launch(
        kernel.symbol, grid=grid, block=geometry.block, args=args, shared=geometry.shared, schedule=schedule
    )
    for name, (s, _) in scratch.items():
        assert not s.zero or name in arrays or not made[name].any(), f"{name} is not left at zero"
    return made


def poison(shape: Sequence[int], dtype: type[np.generic]) -> NDArray[np.generic]:
    """An array whose values are NaN or out of range: what a kernel must not read or must write."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)

"""Runs single kernels: a plan of a few launches over slots, rendered, compiled and called without a model around it."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.alone import launch_alone, plan_alone, slot_alone
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.render import render_step
from ferrum.codegen.target import Target
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.devices.cpu import StepRecord, config_type

VOCAB = 16
MAX_ROWS = 64
THREADS = 2


@dataclass(frozen=True)
class Call:
    """A launch: slots it reads and writes, byte offsets of its weights, whether its rows may be private to each thread."""

    kernel: CpuKernel
    input: int
    output: int
    weights: tuple[int, int, int] = (0, 0, 0)
    in_private: bool = False
    residual: int = 0


def run(
    calls: Sequence[Call],
    row_bytes: Sequence[int],
    rows: int,
    inputs: dict[int, NDArray[np.generic]],
    weights: bytes,
    target: Target,
    tokens: NDArray[np.int32] | None = None,
) -> list[NDArray[np.uint8]]:
    """All slots' bytes ``[rows, row_bytes]`` after running ``calls`` on ``rows`` token rows; slot 0 is kept for logits."""
    launches = [launch_alone(c.kernel, [c.input, c.residual], c.output, c.weights, c.in_private) for c in calls]
    slots = [slot_alone(4 * VOCAB, "samples"), *(slot_alone(n) for n in row_bytes)]
    plan = plan_alone([c.kernel for c in calls], launches, slots, VOCAB)
    code = find_compiler(target.arch).compile(render_step(plan, target, "0" * 64), target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.so"
        path.write_bytes(code)
        return _call(ctypes.CDLL(str(path)), [4 * VOCAB, *row_bytes], rows, inputs, weights, tokens)


def _call(
    lib: ctypes.CDLL,
    sizes: Sequence[int],
    rows: int,
    inputs: dict[int, NDArray[np.generic]],
    weights: bytes,
    tokens: NDArray[np.int32] | None,
) -> list[NDArray[np.uint8]]:
    lib.ferrum_arena_bytes.restype = ctypes.c_int64
    stored = aligned(len(weights))
    stored[:] = np.frombuffer(weights, np.uint8)
    cpus = np.full(THREADS, -1, np.int32)
    config = config_type(1)(weights=stored.ctypes.data, cpus=cpus.ctypes.data, max_blocks_per_seq=1, spin=100)
    config.max_tokens = config.max_seqs = config.max_samples = MAX_ROWS
    config.num_threads = THREADS
    arena = aligned(lib.ferrum_arena_bytes(ctypes.byref(config)))
    config.arena = arena.ctypes.data
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-max(MAX_ROWS, THREADS * 8) * size // 64) * 64
    for slot, value in inputs.items():
        raw = np.ascontiguousarray(value).view(np.uint8).ravel()
        arena[starts[slot] : starts[slot] + raw.size] = raw
    ids = np.zeros(MAX_ROWS, np.int32) if tokens is None else tokens.astype(np.int32)
    query_start = np.array([0, rows], np.int32)
    step = StepRecord(num_tokens=rows, num_seqs=1, num_samples=0, tokens=ids.ctypes.data, query_start=query_start.ctypes.data)
    handle = ctypes.c_void_p()
    assert lib.ferrum_open(ctypes.byref(config), ctypes.byref(step), ctypes.byref(handle)) == 0
    lib.ferrum_step.argtypes = lib.ferrum_close.argtypes = [ctypes.c_void_p]
    lib.ferrum_step(handle)
    lib.ferrum_close(handle)
    return [arena[s : s + rows * size].copy().reshape(rows, size) for s, size in zip(starts, sizes, strict=True)]


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeros at a multiple of 64 bytes."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]

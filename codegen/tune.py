"""The tuner: blockings of matrix products, measured on this machine on weights that no cache holds.

Every candidate is compiled as a step of its own with the same random weights; steps of all candidates then take turns, for
one row, small batches and a prompt, and the one with the smallest product of times wins.
"""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.alone import launch_alone, plan_alone, slot_alone
from ferrum.codegen.kernels.linear.cpu import Blocking, CpuLinear
from ferrum.codegen.layouts import Format, TiledLayout, parse_format, stored
from ferrum.codegen.layouts.activations import act_for
from ferrum.codegen.render import render_step
from ferrum.codegen.target import Target
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.codegen.tuned import blocking
from ferrum.devices.cpu import StepRecord, config_type
from ferrum.devices.topology import usable_cpus
from ferrum.graphs.ir import Param
from ferrum.pack.schema import TuningRecord

ROWS = (1, 4, 16, 64)
_ROUNDS = 7
_VOCAB = 16
# Together the copies of a matrix are larger than the last cache of most machines.
_COLD_BYTES = 96 << 20
# Rows by tiles beside the usual block: for integers, for floats.
_MANY_REGISTERS = (((6, 2), (4, 2), (8, 2), (4, 4), (6, 4)), ((6, 4), (4, 4), (8, 2), (12, 2)))
_FEW_REGISTERS = (((2, 2), (3, 2), (4, 2)), ((4, 2), (5, 2), (2, 4), (6, 2)))
# Rows from which sums of bytes go by tiles, beside the usual number.
_AMX_ROWS = (2, 16)
_MAX_VALUES = 2 << 20
# Of x: a byte that makes a small number in every format of activations, scales too. Speed hardly depends on the values.
_NUMBER = 0x3C


@dataclass(frozen=True)
class Trial:
    """Seconds of one pass over all copies, by rows of x; the smallest of the rounds."""

    blocking: Blocking
    seconds: tuple[float, ...]


def candidates(target: Target, fmt: Format) -> tuple[Blocking, ...]:
    """The usual block first, others whose sums fit the registers, twice the chunk for the usual one; tiles for other rows."""
    integers, floats = _MANY_REGISTERS if target.registers >= 32 else _FEW_REGISTERS
    usual = blocking(target, fmt, {})
    others = [replace(usual, rows=rows, tiles=tiles) for rows, tiles in (integers if fmt.group else floats)]
    others.append(replace(usual, chunk_kib=2 * usual.chunk_kib))
    if usual.amx_rows > 1:
        others += [replace(usual, amx_rows=rows) for rows in _AMX_ROWS]
    return tuple(dict.fromkeys((usual, *others)))


def tune(target: Target, params: Iterable[Param]) -> tuple[dict[str, Blocking], list[TuningRecord]]:
    """The best blocking for each format among the matrices, and all that was measured. The machine must be of the target."""
    largest: dict[str, tuple[int, int]] = {}
    for param in params:
        if param.layout != "rows":
            n, k = param.shape[-2:]
            if n * k > math.prod(largest.get(param.format, (0, 0))):
                largest[param.format] = (n, k)
    chosen, records = {}, []
    for name, (n, k) in largest.items():
        fmt = parse_format(name)
        trials = measure(target, fmt, min(n, max(256, _MAX_VALUES // k)), k, candidates(target, fmt))
        best = min(trials, key=lambda trial: math.prod(trial.seconds))
        chosen[name] = best.blocking
        records += [_record(name, trial, trial is best) for trial in trials]
    return chosen, records


def _record(name: str, trial: Trial, chosen: bool) -> TuningRecord:
    block = trial.blocking
    microseconds = {str(rows): round(1e6 * s) for rows, s in zip(ROWS, trial.seconds, strict=True)}
    return TuningRecord(
        format=name,
        rows=block.rows,
        tiles=block.tiles,
        chunk_kib=block.chunk_kib,
        chosen=chosen,
        microseconds=microseconds,
        amx_rows=block.amx_rows,
    )


def measure(target: Target, fmt: Format, n: int, k: int, blockings: Sequence[Blocking]) -> list[Trial]:
    """Every blocking on the same ``[n, k]`` matrix, in turns."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(n, k)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        runners = [_Runner(_linear(target, fmt, n, k, b), target, w, Path(folder) / f"{i}.so") for i, b in enumerate(blockings)]
        try:
            best = np.full((len(runners), len(ROWS)), np.inf)
            for _ in range(_ROUNDS):
                for column, rows in enumerate(ROWS):
                    for line, runner in enumerate(runners):
                        best[line, column] = min(best[line, column], runner.seconds(rows))
        finally:
            for runner in runners:
                runner.close()
    return [Trial(b, tuple(line)) for b, line in zip(blockings, best.tolist(), strict=True)]


def _linear(target: Target, fmt: Format, n: int, k: int, block: Blocking) -> CpuLinear:
    layout = TiledLayout(n, k, fmt, target.lanes, block.tiles)
    act = act_for(fmt, k, target.rounds_to_bf16)
    return CpuLinear(n, k, layout, False, False, "", act, block.rows, block.tiles, block.chunk_kib, amx_rows=block.amx_rows)


class _Runner:
    """One compiled candidate with its weights, several copies of them."""

    def __init__(self, kernel: CpuLinear, target: Target, w: NDArray[np.float32], path: Path) -> None:
        layout, rows = kernel.weight, max(ROWS)
        stride = -(-layout.nbytes // 64) * 64
        self.copies = max(1, _COLD_BYTES // stride)
        self.weights = _aligned(stride * self.copies)
        self.weights.reshape(self.copies, stride)[:, : layout.nbytes] = stored(w, layout)
        launches = [launch_alone(kernel, [1], 2, [i * stride]) for i in range(self.copies)]
        row_bytes = kernel.act.row_bytes(kernel.k)
        slots = [slot_alone(4 * _VOCAB, "samples"), slot_alone(row_bytes), slot_alone(4 * kernel.n)]
        plan = plan_alone([kernel], launches, slots, _VOCAB)
        compiler = find_compiler(target.arch, target.amx)
        path.write_bytes(compiler.compile(render_step(plan, target, "0" * 64), target))
        self.lib = ctypes.CDLL(str(path))
        self.lib.ferrum_arena_bytes.restype = ctypes.c_int64
        self.lib.ferrum_step.argtypes = self.lib.ferrum_close.argtypes = [ctypes.c_void_p]
        self.lib.ferrum_profile.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        cpus = usable_cpus()
        self.cpus = np.array(cpus, np.int32)
        self.config = config_type(1)(weights=self.weights.ctypes.data, cpus=self.cpus.ctypes.data, max_blocks_per_seq=1)
        self.config.max_tokens = self.config.max_seqs = self.config.max_samples = rows
        self.config.num_threads, self.config.spin = len(cpus), 3000
        self.arena = _aligned(self.lib.ferrum_arena_bytes(ctypes.byref(self.config)))
        self.config.arena = self.arena.ctypes.data
        self.arena[:] = _NUMBER
        self.tokens, self.query_start = np.zeros(rows, np.int32), np.zeros(2, np.int32)
        self.step = StepRecord(num_seqs=1, tokens=self.tokens.ctypes.data, query_start=self.query_start.ctypes.data)
        self.profile = np.zeros(len(launches))
        self.handle = ctypes.c_void_p()
        error = self.lib.ferrum_open(ctypes.byref(self.config), ctypes.byref(self.step), ctypes.byref(self.handle))
        if error:
            raise OSError(error, os.strerror(error))
        self.lib.ferrum_profile(self.handle, self.profile.ctypes.data)

    def seconds(self, rows: int) -> float:
        """One pass over all copies of the weights."""
        self.step.num_tokens = self.query_start[1] = rows
        self.profile[:] = 0
        self.lib.ferrum_step(self.handle)
        return float(self.profile[: self.copies].sum())

    def close(self) -> None:
        self.lib.ferrum_close(self.handle)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeros at a multiple of 64 bytes."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]

"""A kernel alone on random data against the reference of its op: what the cases beside the ops are made of.

A case makes the arrays that the kernel's arguments name; a ``Bench`` runs the kernel on them in emulation and gives the error:
the largest difference relative to the largest expected value, or infinity for results that must be exact and are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import UNWRITTEN
from ferrum.codegen.layouts import to_bf16, to_f32
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import RowCounts, Rows, total

if TYPE_CHECKING:
    from ferrum.codegen.kernels.gpu import GpuKernel
    from ferrum.devices.emulate import Module, Schedule

F32 = NDArray[np.float32]
Arrays = Mapping[str, NDArray[np.generic]]
Random = np.random.Generator
Written = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Case:
    """Arrays by argument, results too; the rows of the launch and their kind; the error, given what is left in scratch."""

    arrays: Arrays
    rows: RowCounts
    judge: Callable[[Written], float]
    kind: Rows = "tokens"


@dataclass(frozen=True)
class Bench:
    """A compiled source and the schedule under which its kernels run; none: the fastest."""

    module: Module
    schedule: Schedule | None = None

    def error(self, kernel: GpuKernel, case: Case) -> float:
        return case.judge(self.run(kernel, case.arrays, case.rows, case.kind))

    def run(self, kernel: GpuKernel, arrays: Arrays, rows: RowCounts, kind: Rows = "tokens") -> Written:
        """Launch ``kernel`` for ``rows``; the bytes of its scratch afterwards. ``arrays`` by argument, results too.

        Counts come from ``rows`` unless they are among the arrays. Scratch that is not among them starts as poison, or as
        zeros where the kernel says so, and must then be zero again at the end.
        """
        scratch = {f"scratch:{name}": (s, total(s.terms, rows)) for name, s in kernel.scratch().items()}
        made = {name: np.full(size, 0 if s.zero else 0xFF, np.uint8) for name, (s, size) in scratch.items() if name not in arrays}
        args: list[Any] = []
        for arg in kernel.args:
            if arg in arrays or arg in made:
                args.append(arrays[arg] if arg in arrays else made[arg])
            elif arg.startswith("limit:"):
                args.append(int(getattr(rows, arg[6:])))
            else:
                args.append(np.array([getattr(rows, kind if arg == "count" else arg.removeprefix("input:num_"))], np.int32))
        geometry = kernel.geometry(kind)
        grid = [max(1, total(axis, rows)) for axis in geometry.grid]
        # kernels for CUDA may start early: before their wait they touch nothing that another kernel writes
        constant = [arg.startswith(UNWRITTEN) for arg in kernel.args]
        self.module.launch(
            kernel.symbol, grid=grid, block=geometry.block, args=args, shared=geometry.shared, schedule=self.schedule,
            constant=constant if self.module.language == "cuda" else None,
        )  # fmt: skip
        left = [name for name, (s, _) in scratch.items() if s.zero and name in made and made[name].any()]
        assert not left, f"{left[0]} is not left at zero"
        return made


def counts(tokens: int, seqs: int = 1, samples: int = 1, blocks_per_seq: int = 1) -> RowCounts:
    return RowCounts(tokens=tokens, samples=samples, seqs=seqs, blocks_per_seq=blocks_per_seq, adjust=64, mask_words=1)


def poison(shape: tuple[int, ...], kind: str) -> NDArray[np.generic]:
    """An array of NaN in the format ``kind`` (f32 or bf16): what a kernel must write, or must not read."""
    dtype = np.dtype(np.uint16 if kind == "bf16" else np.float32)
    return np.full(int(np.prod(shape)) * dtype.itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def rows_in(x: F32, kind: str) -> tuple[NDArray[np.generic], F32]:
    """Rows as a kernel reads them in the format ``kind``, and the float32 values that they mean."""
    if kind == "f32":
        return x, x
    out = np.zeros((len(x), ActFormat(kind).row_stride(x.shape[1])), np.uint16)
    out[:, : x.shape[1]] = to_bf16(x)
    return out, to_f32(np.ascontiguousarray(out[:, : x.shape[1]]))


def values_of(rows: NDArray[np.generic], width: int) -> F32:
    """The float32 values of written rows; the padding behind them must be zero."""
    if rows.shape[1] > width and rows[:, width:].any():
        return np.full((len(rows), width), np.inf, np.float32)
    return to_f32(np.ascontiguousarray(rows[:, :width]))


def error(got: F32, expected: F32) -> float:
    """Largest difference relative to the largest value; infinity for anything that is not a number."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected).max(initial=0.0) / max(float(np.abs(expected).max(initial=0.0)), 1e-30))


def exact(same: bool) -> float:
    return 0.0 if same else float("inf")


def rows_case(arrays: Arrays, expected: F32, kind: str = "f32", of: Rows = "tokens", rows: RowCounts | None = None) -> Case:
    """A case whose result is rows in the format ``kind``: those of ``expected``."""
    result = arrays.get("result", poison((len(expected), ActFormat(kind).row_stride(expected.shape[1])), kind))
    return Case(
        {**arrays, "result": result},
        rows or counts(len(expected)),
        lambda scratch: error(values_of(result, expected.shape[1]), expected),
        of,
    )


def far_apart(random: Random, rows: int, k: int) -> F32:
    """Rows whose sizes differ by powers of ten."""
    return (random.normal(size=(rows, k)) * 10.0 ** random.integers(-3, 3, (rows, 1))).astype(np.float32)


def normal(random: Random, *shape: int) -> F32:
    return random.normal(size=shape).astype(np.float32)

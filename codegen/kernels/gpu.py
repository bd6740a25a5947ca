"""What a GPU kernel spec adds: its launch geometry, its scratch memory, what its machine code must contain, its trial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ferrum.codegen.kernels.base import Kernel
from ferrum.codegen.kernels.cases import Case
from ferrum.pack.launches import Rows, Term

WARP = 32
ONE = (Term("one", 1),)
Self = TypeVar("Self", bound="GpuKernel")


@dataclass(frozen=True)
class Geometry:
    """Grid axes as sums of terms, threads of a block, dynamic shared bytes."""

    grid: tuple[tuple[Term, ...], tuple[Term, ...], tuple[Term, ...]]
    block: tuple[int, int, int]
    shared: int = 0


@dataclass(frozen=True)
class Scratch:
    """A slot that a kernel needs besides its values; equal names share one slot of the largest size.

    ``zero``: counters, cleared at load, that every kernel leaves at zero.
    """

    terms: tuple[Term, ...]
    zero: bool = False


class GpuKernel(Kernel):
    """A kernel for CUDA and Metal: ``templates/gpu/<stem>.j2`` for both, or ``templates/<device>/<stem>.*.j2``."""

    @abstractmethod
    def geometry(self, rows: Rows) -> Geometry:
        """The launch for a call on ``rows``."""

    @abstractmethod
    def case(self, random: np.random.Generator, **how: Any) -> Case:
        """A trial on random data; ``how`` chooses sizes that the parameters leave open."""

    def scratch(self) -> dict[str, Scratch]:
        return {}

    def expects(self) -> dict[str, int]:
        """What machine code of a CUDA build must contain, at least so often: a mnemonic of ``nvdisasm`` and its count."""
        return {}

    def reduced(self: Self) -> Self:
        """A kernel of the same code for smaller numbers, where the shape allows: what emulation has time for."""
        return self

    @property
    def tolerance(self) -> float:
        """What a trial may differ by: rounding to bfloat16 between input and result, or float32 throughout."""
        kinds = {str(self.params.get(name, "")) for name in ("act", "out", "kv_dtype")}
        return 1e-2 if "bf16" in kinds else 1e-3


def per_row(rows: Rows, threads: int) -> Geometry:
    """One block of ``threads`` for each row."""
    return Geometry(((Term(rows, 1),), ONE, ONE), (threads, 1, 1))


def per_item(rows: Rows, items: int, threads: int) -> Geometry:
    """A thread for each of a row's ``items``: as many blocks to a row as that takes, so that a block is of one row."""
    return Geometry(((Term(rows, blocks_of(items, threads)),), ONE, ONE), (threads, 1, 1))


def blocks_of(items: int, threads: int) -> int:
    return -(-items // threads)


def item_threads(items: int) -> int:
    """Threads of a block that has single items of a row: whole warps, and no more than the row can use."""
    return min(256, -(-items // WARP) * WARP)


def parameter(arg: str) -> str:
    """What an argument is called as a parameter: ``value:0`` is ``value_0``."""
    return arg.replace(":", "_")


def parameters(typed: Mapping[str, str]) -> list[str]:
    """The parameters of a kernel as its template declares them: the count, then pointers of C ``typed`` by argument, of which
    only ``result`` is written."""
    pointers = (f"{'' if arg == 'result' else 'const '}{kind} *{parameter(arg)}" for arg, kind in typed.items())
    return ["const int *count", *pointers]


def row_threads(k: int, most: int = 256) -> int:
    """Threads for a row of ``k`` values: a few values each, whole warps."""
    threads = WARP
    while threads < most and threads * 8 < k:
        threads *= 2
    return threads

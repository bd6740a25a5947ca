"""What a GPU kernel spec adds: its launch geometry, its arguments and its scratch memory."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ferrum.codegen.kernels.base import Kernel
from ferrum.pack.launches import Rows, Term

WARP = 32
ONE = (Term("one", 1),)
# Widest vector that a kernel loads: rows of activations start at multiples of it.
ACT_ALIGNMENT = 8


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
    """A kernel for CUDA and Metal: ``templates/<device>/<stem>.*.j2``.

    ``args`` names the parameters of the function in order:

    ================  ===================================================================
    count             pointer to the number of rows (tokens or samples) of this step
    input:NAME        pointer to an array of the step's inputs or to a word of the header
    output:NAME       pointer to an array of the step's outputs
    value:I           pointer to the I-th value that the call reads
    weight:I          pointer to the I-th stored tensor that the call reads
    result            pointer to the rows that the call writes
    scratch:NAME      pointer to a scratch slot
    kv                pointer to the layer's part of the first KV block
    limit:ROWS        int32: rows by the limits
    ================  ===================================================================
    """

    @property
    @abstractmethod
    def args(self) -> tuple[str, ...]:
        """The parameters of the function, in order."""

    @abstractmethod
    def geometry(self, rows: Rows) -> Geometry:
        """The launch for a call on ``rows``."""

    def scratch(self) -> dict[str, Scratch]:
        return {}

    def expects(self) -> dict[str, int]:
        """What machine code of a CUDA build must contain, at least so often: a mnemonic of ``nvdisasm`` and its count."""
        return {}


def per_row(rows: Rows, threads: int) -> Geometry:
    """One block of ``threads`` for each row."""
    return Geometry(((Term(rows, 1),), ONE, ONE), (threads, 1, 1))


def row_threads(k: int, most: int = 256) -> int:
    """Threads for a row of ``k`` values: a few values each, whole warps."""
    threads = WARP
    while threads < most and threads * 8 < k:
        threads *= 2
    return threads


def row_stride(kind: str, k: int) -> int:
    """Values from one row to the next: bf16 rows start at multiples of a vector and are zero behind their end."""
    return -(-k // ACT_ALIGNMENT) * ACT_ALIGNMENT if kind == "bf16" else k


def row_bytes(kind: str, k: int) -> int:
    return row_stride(kind, k) * (2 if kind == "bf16" else 4)

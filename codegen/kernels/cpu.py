"""What a CPU kernel spec adds: the functions that a launch calls, their barriers, and the memory that each thread needs."""

from __future__ import annotations

from typing import ClassVar

from ferrum.codegen.kernels.base import Kernel
from ferrum.pack.launches import Sync

# Up to so many rows every thread computes a row-wise kernel's whole result for itself.
REPLICATE_ROWS = 8


class CpuKernel(Kernel):
    """A kernel for CPUs: ``templates/cpu/<stem>.c.j2``, called by every thread of the pool.

    ``row_wise`` kernels are cheap and run on every thread when rows are few, instead of paying a barrier; each thread then has
    rows of its own. ``reads_private``: the function takes such rows as its first value.
    """

    row_wise: ClassVar[bool] = False
    reads_private: ClassVar[bool] = False

    @property
    def parts(self) -> tuple[tuple[str, Sync], ...]:
        """(what follows the symbol, barrier after it) of the functions that a call launches, in order."""
        return (("", "shared" if self.row_wise else "always"),)

    @property
    def thread_bytes(self) -> int:
        """Scratch memory of a thread."""
        return 0

"""Kernels that take each row alone, on every device."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, TypeVar

from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import Geometry, GpuKernel, per_row, row_threads
from ferrum.pack.launches import Rows

Self = TypeVar("Self", bound="RowKernel")


class RowKernel(CpuKernel, GpuKernel):
    """On GPUs a block takes a row, on CPUs a thread takes a few rows at a time."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Values of a row that the threads of a block share."""

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return row_threads(self.width)

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, self.threads)

    def context(self) -> dict[str, object]:
        return {"threads": self.threads, "per_thread": -(-self.width // self.threads)}


def narrower(kernel: Any) -> Any:
    """The kernel with rows of at most 1024 values."""
    return replace(kernel, k=min(kernel.k, 1024))

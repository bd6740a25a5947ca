"""Compilers of GPU sources: what a toolchain is, and which one a target takes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ferrum.codegen.target import GpuTarget
from ferrum.errors import FerrumError


class GpuToolchain(Protocol):
    """``member`` is the pack's member that the result becomes; ``version`` goes into the pack."""

    @property
    def version(self) -> str: ...
    @property
    def member(self) -> str: ...

    def compile(self, source: str, target: GpuTarget, keep: Path | None = None) -> bytes:
        """Machine code, or the checked source where it is compiled at first load. Raises FerrumError ``toolchain-failed``."""


def find_gpu_toolchain(target: GpuTarget) -> GpuToolchain:
    """NVRTC, else nvcc; on a Mac its compiler, else the source itself. Raises FerrumError when there is none."""
    if target.device == "metal":
        from ferrum.codegen.toolchains.metal import find_metal

        return find_metal()
    from ferrum.codegen.toolchains.nvcc import find_nvcc
    from ferrum.codegen.toolchains.nvrtc import find_nvrtc

    found = find_nvrtc() or find_nvcc()
    if found is None:
        raise FerrumError(
            "no-compiler", "no CUDA compiler was found", "PATH", "pip install ferrum-infer[cuda], or install the CUDA toolkit"
        )
    return found

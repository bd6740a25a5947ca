"""CUDA sources to cubins with nvcc, where a CUDA toolkit is installed and NVRTC is not."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ferrum.codegen.target import GpuTarget
from ferrum.devices.compilers import SourceFile, answer

_FLAGS = ("-cubin", "-std=c++17", "-fmad=true", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")


@dataclass(frozen=True)
class Nvcc:
    """``path`` of the compiler; ``version`` goes into the pack."""

    path: str
    version: str
    member = "code/step.cubin"

    def flags(self, target: GpuTarget) -> list[str]:
        return [f"-arch={target.arch}", *_FLAGS]

    def compile(self, source: str, target: GpuTarget, keep: Path | None = None) -> bytes:
        """A cubin. Raises FerrumError with the compiler's first error, the saved source and the command."""
        command = [self.path, *self.flags(target), "step.cu", "-o", "step.cubin"]
        return SourceFile(source, "step.cu", keep).compile("nvcc", command, "step.cubin")


@cache
def find_nvcc() -> Nvcc | None:
    """The toolkit's compiler on PATH, or nothing."""
    path = shutil.which("nvcc")
    found = re.search(r"release [\d.]+, V([\d.]+)", answer([path, "--version"])) if path else None
    return Nvcc(path, f"nvcc {found[1]}") if path and found else None

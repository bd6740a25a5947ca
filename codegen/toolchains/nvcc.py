"""CUDA sources to cubins with nvcc, where a CUDA toolkit is installed and NVRTC is not."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ferrum.codegen.target import GpuTarget
from ferrum.codegen.toolchains.nvrtc import failure

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
        with tempfile.TemporaryDirectory(prefix="ferrum-nvcc-") as folder:
            work = Path(folder)
            (work / "step.cu").write_text(source, encoding="utf-8")
            command = [self.path, *self.flags(target), "step.cu", "-o", "step.cubin"]
            result = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return (work / "step.cubin").read_bytes()
        raise failure("nvcc", source, result.stderr or result.stdout, " ".join(command).replace("step.cu ", "SOURCE "), keep)


@cache
def find_nvcc() -> Nvcc | None:
    """The toolkit's compiler on PATH, or nothing."""
    path = shutil.which("nvcc")
    if path is None:
        return None
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release [\d.]+, V([\d.]+)", result.stdout)
    return Nvcc(path, f"nvcc {found[1]}") if found else None

"""C compilers: the machine's own, or the one inside the ``ziglang`` package."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ferrum.codegen.target import Target
from ferrum.devices.compilers import SourceFile, find_zig, version_line
from ferrum.devices.host import machine_arch
from ferrum.errors import FerrumError

# The generated code never needs errno from libm, traps, or the sign of a zero.
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
          "-ffp-contract=fast", "-fno-semantic-interposition", "-fvisibility=hidden", "-pthread", "-Wall",
          "-Wno-unknown-pragmas")  # fmt: skip
_MIN_GCC, _MIN_GCC_TILES = 9, 11


@dataclass(frozen=True)
class CToolchain:
    """``command`` starts the compiler; ``kind`` is gcc, clang or zig; ``version`` goes into pack and cache key."""

    command: tuple[str, ...]
    kind: str
    version: str

    def flags(self, target: Target) -> list[str]:
        if self.kind == "zig":
            return [*_FLAGS, "-target", target.zig_triple, f"-mcpu={target.zig_cpu}", "-fno-sanitize=all", "-g0"]
        return [*_FLAGS, *target.cflags]

    def compile(self, source: str, target: Target, keep: Path | None = None) -> bytes:
        """A shared object. Raises FerrumError with the compiler's first error, the saved source and the command."""
        command = [*self.command, *self.flags(target), "step.c", "-o", "step.so", "-lm"]
        return SourceFile(source, "step.c", keep).compile("the C compiler", command, "step.so")


def _system_compiler(oldest: int) -> CToolchain | None:
    """The first on the path that answers; of gcc no version before ``oldest``."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        version = version_line(path) if path else ""
        if not path or not version:
            continue
        kind = "clang" if "clang" in version else "gcc"
        digits = [part for part in version.split()[-1].split(".") if part.isdigit()]
        if kind == "gcc" and digits and int(digits[0]) < oldest:
            continue
        return CToolchain((path,), kind, version)
    return None


def _zig_compiler() -> CToolchain | None:
    command, version = find_zig()
    return CToolchain(command, "zig", version) if command else None


@cache
def find_compiler(arch: str, tiles: bool = False) -> CToolchain:
    """A compiler for an architecture: the machine's own for its own, else zig. Raises FerrumError when there is none.

    ``tiles``: one that knows their instructions.
    """
    oldest = _MIN_GCC_TILES if tiles else _MIN_GCC
    found = (_system_compiler(oldest) if arch == machine_arch() else None) or _zig_compiler()
    if found is None:
        what = f"no C compiler for {arch}{' that knows its tiles' if tiles else ''} was found"
        raise FerrumError("no-compiler", what, "PATH", f"install gcc {oldest} or clang, or: pip install ziglang")
    return found

"""The C++ compiler of emulated kernels, and the cache of what it made.

The machine's own compiler is taken for CUDA sources; Metal sources need clang's vector types, so a clang, or the one inside
the ``ziglang`` package. No C++ library is linked or included.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ferrum import env
from ferrum.devices.compilers import complaint, find_zig, run, version_line
from ferrum.devices.host import machine_arch, machine_features
from ferrum.errors import FerrumError

INCLUDE = Path(__file__).parent / "include"

# Kernels read the same bytes through several types; integers wrap; a bfloat16 product may be contracted as on a GPU.
_FLAGS = ("-x", "c++", "-std=c++17", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics",
          "-fno-strict-aliasing", "-fwrapv", "-fno-math-errno", "-ffp-contract=fast", "-fno-stack-protector",
          "-U_FORTIFY_SOURCE", "-fvisibility=hidden", "-pthread", "-w")  # fmt: skip
# What can be looked for while kernels run. "bounds": accesses outside of shared and local arrays, and those at an address
# that is not a multiple of their type's size. "races": accesses of shared memory without a barrier between them.
# A kernel runs for less time than it is compiled: -O2 would take twice as long for a pack.
Checks = Literal["none", "bounds", "races"]
_CHECKS: dict[Checks, tuple[str, ...]] = {
    "none": ("-Og",),
    "bounds": ("-O1", "-g", "-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", "-fno-omit-frame-pointer"),
    "races": ("-O1", "-g1", "-fsanitize=thread", "-DEMU_RACES"),
}


@dataclass(frozen=True)
class CxxCompiler:
    """``command`` starts it; ``kind`` is gcc, clang or zig; ``version`` goes into the cache's keys."""

    command: tuple[str, ...]
    kind: str
    version: str

    def flags(self, checks: Checks = "none") -> list[str]:
        native = ["-mcpu=native" if self.kind == "zig" or machine_arch() == "aarch64" else "-march=native"]
        if "avx512_fp16" in machine_features():
            # with arithmetic of halves at hand, compilers drop roundings to half or contract what should be rounded twice;
            # those that do not know the flag do not know the instructions
            if self.kind == "zig":
                native = ["-mcpu=native-avx512fp16"]
            elif _compiles(self.command, "-mno-avx512fp16"):
                native.append("-mno-avx512fp16")
        own = {"zig": ["-nostdinc++", "-fno-sanitize=all", "-g0"], "gcc": ["-fno-ipa-reference"], "clang": []}[self.kind]
        wanted = list(_CHECKS[checks])
        if self.kind == "zig" and checks == "races":  # told of it, zig would build the library that is not linked
            wanted.insert(wanted.index("-fsanitize=thread"), "-Xclang")
        return [*_FLAGS, *native, *own, *wanted, f"-I{INCLUDE}"]


@cache
def _compiles(command: tuple[str, ...], *flags: str) -> bool:
    """Whether C++ can be compiled (with these flags): a C compiler without its C++ half answers to --version as well."""
    try:
        result = subprocess.run(
            [*command, *flags, "-x", "c++", "-std=c++17", "-fsyntax-only", "-"],
            input="#include <math.h>\n#include <signal.h>\n", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


@cache
def find_cxx(need_clang: bool) -> CxxCompiler:
    """The machine's C++ compiler, else zig's. Raises FerrumError when there is none."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        version = version_line(path) if path else ""
        kind = "clang" if "clang" in version else "gcc"
        if path and version and not (need_clang and kind == "gcc") and _compiles((path,)):
            return CxxCompiler((path,), kind, version)
    zig, version = find_zig()
    if zig:
        return CxxCompiler(zig, "zig", version)
    what = "no clang was found, which Metal sources need" if need_clang else "no C++ compiler was found"
    raise FerrumError("no-compiler", what, "PATH", "install one, or: pip install ziglang")


@cache
def _headers_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(INCLUDE.glob("*.h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _key(compiler: CxxCompiler, flags: list[str], unit: str) -> str:
    parts = [compiler.version, *compiler.command, *flags, *sorted(machine_features()), _headers_digest(), unit]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def compile_unit(unit: str, headers: tuple[str, ...], compiler: CxxCompiler, checks: Checks = "none") -> Path:
    """The shared object of a translation unit, from the cache when it was made before.

    ``headers`` are names that the source includes and whose content is there already. Raises FerrumError with the
    compiler's first error, the saved source and the command.
    """
    flags = compiler.flags(checks)
    folder = env.cache_dir() / "emulate"
    target = folder / f"{_key(compiler, flags, unit)[:32]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ferrum-emulate-", dir=folder) as made:
        work = Path(made)
        command = _prepare(work, unit, headers, compiler, flags)
        if checks == "races":  # compiled for a library that is not linked
            result = run([*(flag for flag in command if flag != "-shared"), "-c", "-o", "kernels.o"], work)
            if result.returncode == 0:
                result = run([*compiler.command, "-shared", "kernels.o", "-o", "kernels.so", "-lm"], work)
        else:
            result = run([*command, "-o", "kernels.so", "-lm"], work)
        if result.returncode == 0:
            os.replace(work / "kernels.so", target)
            return target
    raise _failure(unit, headers, compiler, flags, result.stderr)


def check_unit(unit: str, headers: tuple[str, ...], compiler: CxxCompiler, defines: tuple[str, ...]) -> str:
    """The compiler's complaints about a translation unit that is only checked; empty when there are none."""
    # zig cannot do -fsyntax-only
    flags = [flag for flag in compiler.flags() if flag not in ("-shared", "-Og")]
    with tempfile.TemporaryDirectory(prefix="ferrum-emulate-") as made:
        command = _prepare(Path(made), unit, headers, compiler, [*flags, "-c", *(f"-D{d}" for d in defines)])
        result = run([*command, "-o", "kernels.o"], Path(made))
        return result.stderr if result.returncode else ""


def _prepare(work: Path, unit: str, headers: tuple[str, ...], compiler: CxxCompiler, flags: list[str]) -> list[str]:
    (work / "kernels.cpp").write_text(unit)
    for name in headers:
        path = work / "empty" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return [*compiler.command, *flags, "-Iempty", "kernels.cpp"]


def _failure(unit: str, headers: tuple[str, ...], compiler: CxxCompiler, flags: list[str], stderr: str) -> FerrumError:
    folder = Path(tempfile.mkdtemp(prefix="ferrum-failed-"))
    command = _prepare(folder, unit, headers, compiler, flags)
    (folder / "stderr.txt").write_text(stderr)
    repeat = f"cd {folder} && {' '.join(command)} -o kernels.so -lm"
    what = f"the emulated kernels do not compile: {complaint(stderr)}"
    return FerrumError("toolchain-failed", what, str(folder / "kernels.cpp"), f"repeat with: {repeat}")

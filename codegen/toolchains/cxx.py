"""C compilers: the machine's own, or the one inside the ``ziglang`` package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ferrum.codegen.target import Target
from ferrum.devices.host import machine_arch
from ferrum.errors import FerrumError

# The generated code never needs errno from libm, traps, or the sign of a zero.
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
          "-ffp-contract=fast", "-fno-semantic-interposition", "-fvisibility=hidden", "-pthread", "-Wall",
          "-Wno-unknown-pragmas")  # fmt: skip
_MIN_GCC = 9


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
        with tempfile.TemporaryDirectory(prefix="ferrum-cc-") as folder:
            work = Path(folder)
            (work / "step.c").write_text(source)
            command = [*self.command, *self.flags(target), "step.c", "-o", "step.so", "-lm"]
            env = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "LC_ALL": "C"}
            if self.kind == "zig":
                env.setdefault("ZIG_LOCAL_CACHE_DIR", str(work / "zig-cache"))
            result = subprocess.run(command, cwd=work, capture_output=True, text=True, env=env, check=False)
            if result.returncode == 0:
                return (work / "step.so").read_bytes()
            saved = _save_failure(source, result.stderr, keep)
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines() or ["no output"]
        repeat = " ".join(command).replace("step.c", str(saved))
        raise FerrumError("toolchain-failed", f"the C compiler failed: {lines[0]}", str(saved), f"repeat with: {repeat}")


def _save_failure(source: str, stderr: str, keep: Path | None) -> Path:
    folder = keep or Path(tempfile.mkdtemp(prefix="ferrum-failed-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.c").write_text(source)
    (folder / "stderr.txt").write_text(stderr)
    return folder / "step.c"


def _first_line(command: tuple[str, ...]) -> str:
    try:
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 and result.stdout else ""


def _system_compiler() -> CToolchain | None:
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        version = _first_line((path,)) if path else ""
        if not path or not version:
            continue
        kind = "clang" if "clang" in version else "gcc"
        digits = [part for part in version.split()[-1].split(".") if part.isdigit()]
        if kind == "gcc" and digits and int(digits[0]) < _MIN_GCC:
            continue
        return CToolchain((path,), kind, version)
    return None


def _zig_compiler() -> CToolchain | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    version = subprocess.run(
        [sys.executable, "-m", "ziglang", "version"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return CToolchain((sys.executable, "-m", "ziglang", "cc"), "zig", f"zig {version}")


@cache
def find_compiler(arch: str) -> CToolchain:
    """A compiler for an architecture: the machine's own for its own, else zig. Raises FerrumError when there is none."""
    found = (_system_compiler() if arch == machine_arch() else None) or _zig_compiler()
    if found is None:
        raise FerrumError(
            "no-compiler", f"no C compiler for {arch} was found", "PATH", "install gcc or clang, or: pip install ziglang"
        )
    return found

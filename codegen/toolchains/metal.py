"""Metal sources: a metallib from ``xcrun metal`` on a Mac, elsewhere the source, whose address spaces are checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ferrum.codegen.target import GpuTarget
from ferrum.errors import FerrumError

# Sums in the written order and infinities that stay: as on a CPU.
_FLAGS = ("-fno-fast-math", "-ffp-contract=off", "-O2")


@dataclass(frozen=True)
class XcrunMetal:
    """The compiler of a Mac; ``version`` goes into the pack."""

    version: str
    member = "code/step.metallib"

    def flags(self, target: GpuTarget) -> list[str]:
        return [f"-std={target.driver}", *_FLAGS]

    def compile(self, source: str, target: GpuTarget, keep: Path | None = None) -> bytes:
        """A metallib. Raises FerrumError with the compiler's first error, the saved source and the command."""
        with tempfile.TemporaryDirectory(prefix="ferrum-metal-") as folder:
            work = Path(folder)
            (work / "step.metal").write_text(source, encoding="utf-8")
            command = ["xcrun", "-sdk", "macosx", "metal", *self.flags(target), "step.metal", "-o", "step.metallib"]
            result = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return (work / "step.metallib").read_bytes()
        repeat = " ".join(command).replace("step.metal ", "SOURCE ")
        raise failure("metal", source, result.stderr or result.stdout, repeat, keep)


@dataclass(frozen=True)
class MetalSource:
    """The source travels in the pack and is compiled at first load."""

    version: str = "metal source"
    member = "code/step.metal"

    def compile(self, source: str, target: GpuTarget, keep: Path | None = None) -> bytes:
        """The source itself. Raises FerrumError when a compiler for emulation is here and finds an error in it."""
        from ferrum.devices.emulate import metal

        try:
            complaints = metal.check(source)
        except FerrumError as error:
            if error.code != "no-compiler":
                raise
            complaints = ""
        if complaints:
            repeat = "python -m ferrum.codegen.toolchains.metal SOURCE"
            raise failure("the check of the Metal source", source, complaints, repeat, keep)
        return source.encode()


def failure(compiler: str, source: str, log: str, repeat: str, keep: Path | None) -> FerrumError:
    """Save source and messages; the error that names them. ``repeat`` has SOURCE where the path belongs."""
    folder = keep or Path(tempfile.mkdtemp(prefix="ferrum-failed-"))
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "step.metal"
    saved.write_text(source, encoding="utf-8")
    (folder / "stderr.txt").write_text(log, encoding="utf-8")
    lines = [line for line in log.splitlines() if "error" in line] or log.splitlines() or ["no output"]
    return FerrumError(
        "toolchain-failed", f"{compiler} failed: {lines[0]}", str(saved), f"repeat with: {repeat.replace('SOURCE', str(saved))}"
    )


@cache
def find_metal() -> XcrunMetal | MetalSource:
    """The compiler of this Mac, else the source itself."""
    if sys.platform != "darwin" or shutil.which("xcrun") is None:
        return MetalSource()
    try:
        command = ["xcrun", "-sdk", "macosx", "metal", "--version"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return MetalSource()
    return XcrunMetal(result.stdout.splitlines()[0].strip()) if result.returncode == 0 and result.stdout else MetalSource()


def main(argv: list[str]) -> int:
    """``SOURCE``: check a saved source again."""
    from ferrum.devices.emulate import metal

    complaints = metal.check(Path(argv[0]).read_text(encoding="utf-8"))
    if complaints:
        print(complaints)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

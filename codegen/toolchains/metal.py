"""Metal sources: a metallib from ``xcrun metal`` on a Mac, elsewhere the source, whose address spaces are checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ferrum.codegen.target import GpuTarget
from ferrum.devices.compilers import SourceFile, version_line
from ferrum.errors import FerrumError

_METAL = ("xcrun", "-sdk", "macosx", "metal")
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
        command = [*_METAL, *self.flags(target), "step.metal", "-o", "step.metallib"]
        return SourceFile(source, "step.metal", keep).compile("metal", command, "step.metallib")


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
            repeat = ("python", "-m", "ferrum.codegen.toolchains.metal", "step.metal")
            raise SourceFile(source, "step.metal", keep).failure("the check of the Metal source", complaints, repeat)
        return source.encode()


@cache
def find_metal() -> XcrunMetal | MetalSource:
    """The compiler of this Mac, else the source itself."""
    version = version_line(*_METAL) if sys.platform == "darwin" else ""
    return XcrunMetal(version) if version else MetalSource()


def main(argv: list[str]) -> int:
    """``SOURCE``: check a saved source again."""
    from ferrum.devices.emulate import metal

    complaints = metal.check(Path(argv[0]).read_text(encoding="utf-8"))
    if complaints:
        print(complaints)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""CUDA sources to cubins with NVRTC: from the package index, without a driver, a GPU, a C compiler or headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ferrum.codegen.target import GpuTarget
from ferrum.devices.compilers import SourceFile
from ferrum.errors import FerrumError

# Divisions and square roots as exact as on a CPU; -0.0 and denormals are kept. Line numbers only: names of files would differ.
_FLAGS = ("-std=c++17", "--fmad=true", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "-default-device")


@dataclass(frozen=True)
class Nvrtc:
    """``version`` goes into the pack."""

    version: str
    member = "code/step.cubin"
    source = "code/step.cu"

    def flags(self, target: GpuTarget) -> list[str]:
        return [f"--gpu-architecture={target.arch}", *_FLAGS]

    def compile(self, source: str, target: GpuTarget, keep: Path | None = None) -> bytes:
        """A cubin. Raises FerrumError with the compiler's first error, the saved source and the command to repeat it."""
        from cuda.bindings import nvrtc

        status, program = nvrtc.nvrtcCreateProgram(source.encode(), b"step.cu", 0, [], [])
        assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
        try:
            flags = [flag.encode() for flag in self.flags(target)]
            (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
            if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                size = nvrtc.nvrtcGetProgramLogSize(program)[1]
                log = bytearray(size)
                nvrtc.nvrtcGetProgramLog(program, log)
                told = bytes(log).rstrip(b"\0").decode("utf-8", "replace")
                raise SourceFile(source, "step.cu", keep).failure("NVRTC", told, self.repeat(target))
            size = nvrtc.nvrtcGetCUBINSize(program)[1]
            code = bytearray(size)
            nvrtc.nvrtcGetCUBIN(program, code)
            return bytes(code)
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def repeat(self, target: GpuTarget) -> tuple[str, ...]:
        """The command that compiles a saved ``step.cu`` again; it needs this package only."""
        return ("python", "-m", "ferrum.codegen.toolchains.nvrtc", target.name, "step.cu")


def find_nvrtc() -> Nvrtc | None:
    """NVRTC of the installed package, or nothing when it or the bindings are missing."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception:  # the bindings raise errors of their own when the library is missing
        return None
    return Nvrtc(f"nvrtc {major}.{minor}") if status == nvrtc.nvrtcResult.NVRTC_SUCCESS else None


def main(argv: list[str]) -> int:
    """``TARGET SOURCE``: compile a saved source and write the cubin beside it."""
    from ferrum.codegen.target import parse_target

    target, path = parse_target(argv[0]), Path(argv[1])
    toolchain = find_nvrtc()
    assert isinstance(target, GpuTarget) and toolchain is not None
    try:
        path.with_suffix(".cubin").write_bytes(toolchain.compile(path.read_text(encoding="utf-8"), target, path.parent))
    except FerrumError as error:
        print(f"error: {error}\n{(path.parent / 'stderr.txt').read_text(encoding='utf-8')}")
        return 1
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))

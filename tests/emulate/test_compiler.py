"""Compilers of emulated kernels: the cache, other compilers, other machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferrum.devices.emulate import Module, cuda, metal
from ferrum.devices.emulate.compiler import CxxCompiler, compile_unit, find_cxx
from tests.emulate.sources import text
from tests.emulate.test_planted import gemm_cuda

ZIG = (sys.executable, "-m", "ziglang")


def zig() -> CxxCompiler:
    version = subprocess.run([*ZIG, "version"], capture_output=True, text=True, check=True).stdout.strip()
    return CxxCompiler((*ZIG, "cc"), "zig", f"zig {version}")


def test_a_source_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRUM_CACHE", str(tmp_path))  # other tests compile at the same time
    unit, compiler = cuda.translate('extern "C" __global__ void k(int *x) { x[0] = 1; }'), find_cxx(False)
    first = compile_unit(unit, cuda.HEADERS, compiler)
    made = first.stat().st_mtime_ns
    assert compile_unit(unit, cuda.HEADERS, compiler) == first and first.stat().st_mtime_ns == made
    other = compile_unit(unit + "// changed\n", cuda.HEADERS, compiler)
    assert other != first and not [p for p in first.parent.iterdir() if p.is_dir()]


def test_metal_needs_a_clang() -> None:
    assert find_cxx(True).kind in ("clang", "zig")


@pytest.mark.slow
def test_cuda_sources_compile_with_zig_alone() -> None:
    path = compile_unit(cuda.translate(text("gemm.cu")), cuda.HEADERS, zig())
    from ferrum.devices.emulate import SCHEDULES

    for schedule in SCHEDULES:
        assert gemm_cuda(Module(path), schedule) < 1e-3
    info = Module(path).kernels["gemm"]
    assert info.params == (0, 0, 0, 4, 4, 4) and info.shared >= 2 * 3 * 64 * 40 * np.dtype(np.uint16).itemsize


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "aarch64-macos", pytest.param("x86_64-macos", marks=pytest.mark.sweep)])
def test_other_machines(target: str, tmp_path: Path) -> None:
    """Compiled only: context switch, sections and small floats of machines that are not at hand."""
    for name, unit, headers in (
        ("cuda", cuda.translate(text("matrix.cu") + text("threads.cu")), cuda.HEADERS),
        ("metal", metal.translate(text("gemm.metal")), metal.HEADERS),
    ):
        (tmp_path / f"{name}.cpp").write_text(unit)
        for header in headers:
            (tmp_path / header).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / header).write_text("")
        flags = [flag for flag in zig().flags() if not flag.startswith("-mcpu")]
        command = [*zig().command, *flags, "-target", target, f"-I{tmp_path}", f"{name}.cpp", "-o", f"{name}.so", "-lm"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

"""The compilers of CUDA sources: a failure can be repeated, and both take the same source."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferrum.codegen.kernels.sample import GpuSample
from ferrum.codegen.render import render_kernels
from ferrum.codegen.toolchains.nvcc import find_nvcc
from ferrum.codegen.toolchains.nvrtc import find_nvrtc
from ferrum.errors import FerrumError
from tests.codegen.test_cuda_rules import HOPPER

NVRTC = find_nvrtc()


@pytest.mark.skipif(NVRTC is None, reason="nvrtc is not installed")
def test_a_failure_can_be_repeated(tmp_path: Path) -> None:
    """The error has the compiler's first message, the saved source and a command."""
    for toolchain in filter(None, (NVRTC, find_nvcc())):
        with pytest.raises(FerrumError) as raised:
            toolchain.compile("__global__ void k() { wrong; }", HOPPER, tmp_path)
        assert "wrong" in raised.value.what and str(tmp_path / "step.cu") in raised.value.next_step
        assert "wrong" in (tmp_path / "stderr.txt").read_text() and (tmp_path / "step.cu").exists()


@pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")
def test_nvcc_takes_the_same_source() -> None:
    toolchain = find_nvcc()
    assert toolchain is not None
    kernel = GpuSample(151936, 512, 4096)
    code = toolchain.compile(render_kernels("static", [kernel], HOPPER, "0" * 64), HOPPER)
    assert code[:4] == b"\x7fELF"

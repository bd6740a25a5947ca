"""Rules on the machine code of the generic CUDA kernels, as ``test_cuda_rules.py`` has them for the fused ones."""

from __future__ import annotations

import pytest

from ferrum.codegen.static import find_tool
from ferrum.codegen.target import GpuTarget
from tests.codegen import test_generic_gpu
from tests.codegen.test_cuda_rules import CUDA, FEW, NVRTC, compiled, faults_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(NVRTC is None or not find_tool("nvdisasm"), reason="nvrtc or nvdisasm is not installed"),
]
HELD = [pytest.param(t, id=t.name, marks=() if t.name in FEW else pytest.mark.sweep) for t in CUDA]


@pytest.mark.parametrize("target", HELD)
def test_generic_kernels_keep_the_rules(target: GpuTarget) -> None:
    kernels = [kernel for make in test_generic_gpu.KINDS for kernel in make()]
    code, records = compiled(kernels, target)
    found = {kernel.symbol: faults_of(kernel, code[kernel.symbol], records[kernel.symbol], target) for kernel in kernels}
    assert not {symbol: faults for symbol, faults in found.items() if faults}

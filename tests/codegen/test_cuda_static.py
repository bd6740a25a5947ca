"""What the compiler makes of the CUDA kernels, for every target: registers, spills, shared memory, instructions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.linear.choose import gpu_variants as linear_variants
from ferrum.codegen.kernels.paged_attention.choose import gpu_variants as attention_variants
from ferrum.codegen.kernels.sample import GpuSample, SamplePeaks
from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.render import render_kernels
from ferrum.codegen.static import find_tool, inspect
from ferrum.codegen.target import GPU_TARGETS, GpuTarget
from ferrum.codegen.toolchains.nvcc import find_nvcc
from ferrum.codegen.toolchains.nvrtc import find_nvrtc
from ferrum.errors import FerrumError
from ferrum.pack.static import WAIT, KernelStatic, shortcomings

NVRTC = find_nvrtc()
CUDA = [t for t in GPU_TARGETS if t.device == "cuda"]
# Kernels differ from those of the chip before only in how many blocks share the work.
SIBLINGS = ("cuda-sm87", "cuda-sm103", "cuda-sm121")
pytestmark = pytest.mark.skipif(NVRTC is None or not find_tool("nvdisasm"), reason="nvrtc or nvdisasm is not installed")


def kernels_of(target: GpuTarget) -> list[GpuKernel]:
    """The hot kernels of Qwen3-0.6B and, for other head sizes and formats, of shapes like it."""
    made: list[GpuKernel] = []
    down, gate_up = (1024, 3072, ""), (6144, 1024, "silu_mul")
    shapes = {fmt: (down, gate_up) for fmt in ("bf16", "fp8", "int8-g128", "int4-g128")}
    shapes |= {"int4-g32": (gate_up,), "int4a-g32": (down,)}
    heads = ((64, 4), (128, 2), (256, 4))
    if target.name in SIBLINGS:
        shapes, heads = {"bf16": (down,), "int4-g128": (gate_up,)}, heads[1:2]
    for fmt, chosen in shapes.items():
        for n, k, activation in chosen:
            layout = RowLayout(n, k, parse_format(fmt), 2 if activation else 1)
            fields = {"n": n, "k": k, "weight": layout, "bias": False, "residual": not activation, "activation": activation}
            fields["out"] = "bf16" if activation else "f32"
            made += [v.kernel for v in linear_variants(fields, target, "tokens")]
    for dim, group in heads:
        fields = {"num_heads": 8 * group, "num_kv_heads": 8, "head_dim": dim, "window": 0, "softmax_scale": dim**-0.5}
        fields |= {"kv_dtype": "bf16", "out": "bf16", "block_bytes": 28 * 8 * 2 * 16 * dim * 2}
        made += [v.kernel for v in attention_variants(fields, target)]
    return [*made, SamplePeaks(151936, 512, 4096), GpuSample(151936, 512, 4096)]


@cache
def records(target: GpuTarget) -> list[KernelStatic]:
    assert NVRTC is not None
    kernels = kernels_of(target)
    code = NVRTC.compile(render_kernels("static", kernels, target, "0" * 64), target)
    shared = {k.symbol: (k, k.geometry("tokens").shared) for k in kernels}
    return inspect(code, shared, target).kernels


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", CUDA, ids=lambda t: t.name)
def test_hot_kernels(target: GpuTarget) -> None:
    """Nothing spills, everything fits, and the instructions that a spec counts on are there; so is the wait of an early start."""
    found = {record.symbol: shortcomings(record) for record in records(target)}
    assert not any(found.values()), {symbol: what for symbol, what in found.items() if what}
    assert all(record.spills == 0 for record in records(target))
    assert {bool(record.instructions.get(WAIT)) for record in records(target)} == {target.has_early_start}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_source_gives_the_same_cubin() -> None:
    assert NVRTC is not None
    target = CUDA[0]
    source = render_kernels("static", kernels_of(target)[:6], target, "0" * 64)
    assert NVRTC.compile(source, target) == NVRTC.compile(source, target)


def test_a_failure_can_be_repeated(tmp_path: Path) -> None:
    """The error has the compiler's first message, the saved source and a command."""
    assert NVRTC is not None
    for toolchain in filter(None, (NVRTC, find_nvcc())):
        with pytest.raises(FerrumError) as raised:
            toolchain.compile("__global__ void k() { wrong; }", CUDA[0], tmp_path)
        assert "wrong" in raised.value.what and str(tmp_path / "step.cu") in raised.value.next_step
        assert "wrong" in (tmp_path / "stderr.txt").read_text() and (tmp_path / "step.cu").exists()


@pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")
def test_nvcc_takes_the_same_source() -> None:
    toolchain, target = find_nvcc(), CUDA[4]
    assert toolchain is not None
    kernels = kernels_of(target)[-1:]
    code = toolchain.compile(render_kernels("static", kernels, target, "0" * 64), target)
    assert code[:4] == b"\x7fELF"

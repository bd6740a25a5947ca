"""Rules on the machine code of CUDA kernels, for every target and format: one shape each, and planted faults that break them."""

from __future__ import annotations

from functools import cache

import pytest

from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.gather_rows import GatherRows
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.codegen.kernels.linear.choose import gpu_variants as linear_variants
from ferrum.codegen.kernels.linear.small import SmallLinear
from ferrum.codegen.kernels.paged_attention.choose import gpu_variants as attention_variants
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.kernels.rms_norm import RmsNorm
from ferrum.codegen.kernels.rope_kv import RopeKv
from ferrum.codegen.kernels.rope_table import RopeTable
from ferrum.codegen.kernels.sample import GpuSample, SamplePeaks
from ferrum.codegen.kernels.schedule import Schedule
from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.render import render_kernels
from ferrum.codegen.static import find_tool, inspect, listings
from ferrum.codegen.static_rules import blocks_per_unit, early_faults, inner_loop, read, swaps
from ferrum.codegen.target import BY_NAME, GPU_TARGETS, GpuTarget
from ferrum.codegen.toolchains.nvrtc import find_nvrtc
from ferrum.pack.static import KernelStatic

NVRTC = find_nvrtc()
CUDA = [t for t in GPU_TARGETS if t.device == "cuda"]
pytestmark = pytest.mark.skipif(NVRTC is None or not find_tool("nvdisasm"), reason="nvrtc or nvdisasm is not installed")
# (instructions of a warp for 1,024 bytes of weights at up to 8 rows, share of them that only moves registers): at most
BUDGETS = {"bf16": (50, 0.35), "fp8": (95, 0.05), "int8-g128": (115, 0.08), "int4-g128": (145, 0.05), "int4a-g32": (205, 0.1)}
# Blocks on a multiprocessor at once, at least: what hides the latency of memory, and of one kernel behind another.
BLOCKS = {"linear_large": 1, "paged_attention_decode": 1, "paged_attention_prefill": 1, "sample": 1}
OTHER_BLOCKS = 2
DIM, HEADS, KV_HEADS = 128, 16, 8


def products(target: GpuTarget, fmt: str) -> list[GpuKernel]:
    """Of one shape: up to 8 rows, and of two formats many."""
    layout = RowLayout(6144, 1024, parse_format(fmt), 2)
    fields = {"n": 6144, "k": 1024, "weight": layout, "bias": False, "residual": False, "activation": "silu_mul", "out": "bf16"}
    kernels = [v.kernel for v in linear_variants(fields, target, "tokens")]
    chosen = (kernels[0], kernels[-1]) if fmt in ("bf16", "int4-g128") else kernels[:1]
    return [k for k in chosen if isinstance(k, GpuKernel)]


def others(target: GpuTarget) -> list[GpuKernel]:
    block = 2 * KV_HEADS * 16 * DIM * 2
    fields = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM, "window": 0, "softmax_scale": 0.1}
    attention = attention_variants(fields | {"kv_dtype": "bf16", "out": "bf16", "block_bytes": block}, target)
    return [
        *(k for v in (attention[0], attention[-1]) if isinstance(k := v.kernel, GpuKernel)),
        SamplePeaks(151936, 512, 4096), GpuSample(151936, 512, 4096), RmsNorm(1024, 1e-6, ActFormat("bf16")),
        LayerNorm(1024, 1e-5, True, ActFormat("bf16")), Quantize(1024, ActFormat("bf16")), GatherRows(1024), RopeTable(64, 1.0),
        RopeKv(HEADS, KV_HEADS, DIM, DIM, True, 1e-6, "bf16", block), Schedule(32),
        Embedding(151936, 1024, RowLayout(151936, 1024, parse_format("int4-g128")), 1.0),
    ]  # fmt: skip


Made = tuple[dict[str, str], list[KernelStatic]]


def compiled(kernels: list[GpuKernel], target: GpuTarget, old: str = "", new: str = "") -> Made:
    """Listings by symbol and records; ``old`` in the source becomes ``new``."""
    assert NVRTC is not None
    source = render_kernels("rules", kernels, target, "0" * 64)
    assert old in source, f"the template has changed: {old!r} is not in it"
    code = NVRTC.compile(source.replace(old, new, 1) if old else source, target)
    return listings(code), inspect(code, {k.symbol: (k, k.geometry("tokens").shared) for k in kernels}, target).kernels


@cache
def of_target(name: str) -> tuple[list[GpuKernel], dict[str, str], dict[str, KernelStatic]]:
    target = BY_NAME[name]
    assert isinstance(target, GpuTarget)
    kernels = [*(k for fmt in BUDGETS for k in products(target, fmt)), *others(target)]
    listing, records = compiled(kernels, target)
    return kernels, listing, {record.symbol: record for record in records}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", CUDA, ids=lambda t: t.name)
def test_machine_code_keeps_the_rules(target: GpuTarget) -> None:
    kernels, listing, records = of_target(target.name)
    broken = []
    for kernel in kernels:
        code, record, geometry = read(listing[kernel.symbol]), records[kernel.symbol], kernel.geometry("tokens")
        broken += [(kernel.stem, fault) for fault in swaps(code)]
        if target.has_early_start:
            broken += [(kernel.stem, fault) for fault in early_faults(kernel, code, target)]
        blocks = blocks_per_unit(target, geometry.block[0], record.registers, record.shared)
        if blocks < BLOCKS.get(kernel.stem, OTHER_BLOCKS):
            broken.append((kernel.stem, f"{blocks} blocks on a multiprocessor"))
        if isinstance(kernel, SmallLinear) and target.has_bf16:
            fmt = kernel.weight.format.name
            loop = inner_loop(code, 2 * kernel.row_tiles * max(1, kernel.weight.chunk_k // 32))
            if loop.per_kb > BUDGETS[fmt][0] or loop.moves > BUDGETS[fmt][1] or not loop.per_kb:
                broken.append((fmt, f"{loop.per_kb:.0f} instructions for a kilobyte, {loop.moves:.0%} moves"))
    assert broken == []


def faults_of(kernel: GpuKernel, old: str, new: str) -> list[str]:
    """What the rule on early starts says of ``kernel`` with a fault, compiled for the oldest target that has them."""
    target = next(t for t in CUDA if t.has_early_start)
    listing, _ = compiled([kernel], target, old, new)
    return early_faults(kernel, read(listing[kernel.symbol]), target)


WAIT = "wait_for_previous();"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("", "", ""),
        (WAIT, "out[blockIdx.x] = 0.0f; " + WAIT, "STG"),
        (WAIT, "const float early = x[blockIdx.x]; " + WAIT + " if (early == 5.0f) return;", "value:0"),
        (WAIT, "const int early = __ldcg(rows + blockIdx.x); " + WAIT + " if (early == 5) return;", ""),
    ],
    ids=["as it stands", "a store moved across the wait", "a value read before the wait", "an input read before the wait"],
)
def test_what_a_kernel_does_before_its_wait_is_seen(old: str, new: str, what: str) -> None:
    found = faults_of(GatherRows(256), old, new)
    assert len(found) == bool(what) and what in "".join(found)


@pytest.mark.slow
def test_a_loop_over_compare_and_swap_is_seen() -> None:
    """Additions of 64 bits in shared memory have no instruction: the compiler makes such a loop of them."""
    kernel, target = GatherRows(256), CUDA[0]
    added = "__shared__ u64 sum; atomicAdd(&sum, (u64)threadIdx.x); out[0] = (float)sum; "
    listing, _ = compiled([kernel], target, WAIT, added + WAIT)
    assert swaps(read(listing[kernel.symbol]))


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks"),
    [("cuda-sm80", 256, 32, 0, 8), ("cuda-sm80", 256, 33, 0, 6), ("cuda-sm89", 256, 32, 0, 6), ("cuda-sm80", 128, 32, 40960, 4),
     ("cuda-sm75", 256, 32, 0, 4), ("cuda-sm75", 128, 32, 16384, 4)],
)
def test_blocks_on_a_multiprocessor(name: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    target = BY_NAME[name]
    assert isinstance(target, GpuTarget)
    assert blocks_per_unit(target, threads, registers, shared) == blocks

"""Rules on the machine code of the hot CUDA kernels, for every target and format, and planted faults that break them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard

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
from ferrum.codegen.static_rules import (
    Instruction,
    blocks_per_unit,
    early_faults,
    early_loads,
    inner_loop,
    read,
    swaps,
)
from ferrum.codegen.target import BY_NAME, GPU_TARGETS, GpuTarget
from ferrum.codegen.toolchains.nvrtc import find_nvrtc
from ferrum.codegen.walk import Variant
from ferrum.pack.static import WAIT, KernelStatic, shortcomings

NVRTC = find_nvrtc()
CUDA = [t for t in GPU_TARGETS if t.device == "cuda"]
HOPPER = next(t for t in CUDA if t.has_early_start)
# Their kernels differ from those of another chip only in how many blocks share the work, or, without matrix instructions for
# bfloat16, take a compiler very long: of each format one is looked at, and the largest.
SOME = ("cuda-sm75", "cuda-sm86", "cuda-sm87", "cuda-sm103", "cuda-sm121")
# One of each kind of matrix instructions, and the one without any for bfloat16; the others are a sweep.
FEW = ("cuda-sm75", "cuda-sm80", "cuda-sm90", "cuda-sm120")
HELD = [pytest.param(t, id=t.name, marks=() if t.name in FEW else pytest.mark.sweep) for t in CUDA]
PAGE = Path(__file__).parents[2] / "docs" / "kernel-changes.md"
pytestmark = pytest.mark.skipif(NVRTC is None or not find_tool("nvdisasm"), reason="nvrtc or nvdisasm is not installed")
# (instructions of a warp for 1,024 bytes of weights at up to 8 rows, share of them that only moves registers): at most
BUDGETS = {"bf16": (50, 0.35), "fp8": (95, 0.05), "int8-g64": (115, 0.08), "int8-g128": (115, 0.08),
           "int4-g128": (145, 0.05), "int4-g32": (175, 0.1), "int4a-g32": (205, 0.1)}  # fmt: skip
# Blocks on a multiprocessor at once, at least: what hides the latency of memory, and of one kernel behind another.
BLOCKS = {"linear_large": 1, "paged_attention_decode": 1, "paged_attention_prefill": 1, "sample": 1}
OTHER_BLOCKS = 2
# Loads that are under way before the wait of an early start, at least: lengths and places of blocks; weights, and their scales.
EARLY = {"paged_attention_decode": 6, "linear_small": 5, "linear_large": 3}
EARLY_NARROW = 7
KV_HEADS = 8
Made = tuple[dict[str, list[Instruction]], dict[str, KernelStatic]]


def products(target: GpuTarget, n: int, k: int, fmt: str, activation: str = "") -> list[GpuKernel]:
    """Of one matrix, for every number of rows."""
    layout = RowLayout(n, k, parse_format(fmt), 2 if activation else 1)
    fields = {"n": n, "k": k, "weight": layout, "bias": False, "residual": not activation, "activation": activation}
    return gpu_kernels(linear_variants(fields | {"out": "bf16" if activation else "f32"}, target, "tokens"))


def attention(target: GpuTarget, dim: int, group: int) -> list[GpuKernel]:
    fields = {"num_heads": KV_HEADS * group, "num_kv_heads": KV_HEADS, "head_dim": dim, "window": 0, "softmax_scale": dim**-0.5}
    fields |= {"kv_dtype": "bf16", "out": "bf16", "block_bytes": 28 * KV_HEADS * 2 * 16 * dim * 2}
    return gpu_kernels(attention_variants(fields, target))


def gpu_kernels(variants: tuple[Variant, ...]) -> list[GpuKernel]:
    return [v.kernel for v in variants if isinstance(v.kernel, GpuKernel)]


def others() -> list[GpuKernel]:
    block = 2 * KV_HEADS * 16 * 128 * 2
    return [
        SamplePeaks(151936, 512, 4096), GpuSample(151936, 512, 4096), RmsNorm(1024, 1e-6, ActFormat("bf16")),
        LayerNorm(1024, 1e-5, True, ActFormat("bf16")), Quantize(1024, ActFormat("bf16")), GatherRows(1024), RopeTable(64, 1.0),
        RopeKv(16, KV_HEADS, 128, 128, True, 1e-6, "bf16", block), Schedule(32),
        Embedding(151936, 1024, RowLayout(151936, 1024, parse_format("int4-g128")), 1.0),
    ]  # fmt: skip


def kernels_of(target: GpuTarget) -> list[GpuKernel]:
    """The kernels of Qwen3-0.6B and, for other head sizes and formats, of shapes like it: each format with every number of rows
    in one of two matrices."""
    gate_up = {fmt: products(target, 6144, 1024, fmt, "silu_mul") for fmt in BUDGETS}
    narrow = [kernels[0] for kernels in gate_up.values()]
    if target.name in SOME:
        heads = attention(target, 128, 2)
        return [*narrow, *gate_up["bf16"][-2:], gate_up["int4-g128"][-1], heads[0], heads[-1], *others()]
    wide = [k for fmt in ("bf16", "int4-g128", "int4a-g32") for k in gate_up[fmt][1:]]
    down = {fmt: products(target, 1024, 3072, fmt) for fmt in ("fp8", "int8-g64", "bf16", "int4-g128")}
    deep = [*down["fp8"], *down["int8-g64"], down["bf16"][0], down["int4-g128"][0]]
    heads = [k for dim, group in ((64, 4), (128, 2), (256, 4)) for k in attention(target, dim, group)]
    return [*narrow, *wide, *deep, *heads, *others()]


def compiled(kernels: list[GpuKernel], target: GpuTarget, old: str = "", new: str = "") -> Made:
    """Listings by symbol and records; ``old`` in the source becomes ``new``."""
    assert NVRTC is not None
    source = render_kernels("rules", kernels, target, "0" * 64)
    assert old in source, f"the template has changed: {old!r} is not in it"
    code = NVRTC.compile(source.replace(old, new, 1) if old else source, target)
    records = inspect(code, {k.symbol: (k, k.geometry("tokens").shared) for k in kernels}, target).kernels
    return {symbol: read(text) for symbol, text in listings(code).items()}, {record.symbol: record for record in records}


def is_narrow(kernel: GpuKernel) -> TypeGuard[SmallLinear]:
    """Whether it is the product of up to 8 rows that decoding is made of."""
    return isinstance(kernel, SmallLinear) and kernel.row_tiles == 1 and kernel.n == 6144


def faults_of(kernel: GpuKernel, code: list[Instruction], record: KernelStatic, target: GpuTarget) -> list[str]:
    """What of ``kernel`` breaks a rule, in words."""
    found = [*shortcomings(record), *swaps(code)]
    if record.spills and kernel.stem != "rope_table":  # the sine of a large angle has an array of its own
        found.append(f"{record.spills} spills")
    if bool(record.instructions.get(WAIT)) != target.has_early_start:
        found.append("a wait without an early start, or the other way round")
    if target.has_early_start:
        found += early_faults(kernel, code, target)
        if early_loads(code) < (EARLY_NARROW if is_narrow(kernel) else EARLY.get(kernel.stem, 0)):
            found.append(f"{early_loads(code)} loads before the wait")
    blocks = blocks_per_unit(target, kernel.geometry("tokens").block[0], record.registers, record.shared)
    if blocks < BLOCKS.get(kernel.stem, OTHER_BLOCKS if not isinstance(kernel, SmallLinear) or is_narrow(kernel) else 1):
        found.append(f"{blocks} blocks on a multiprocessor")
    if is_narrow(kernel) and target.has_bf16:
        found += over_budget(kernel, code)
    return found


def over_budget(kernel: SmallLinear, code: list[Instruction]) -> list[str]:
    loop = inner_loop(code, 2 * kernel.row_tiles * max(1, kernel.weight.chunk_k // 32))
    most, moves = BUDGETS[kernel.weight.format.name]
    good = 0 < loop.per_kb <= most and loop.moves <= moves
    return [] if good else [f"{loop.per_kb:.0f} instructions for a kilobyte, {loop.moves:.0%} moves"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", HELD)
def test_machine_code_keeps_the_rules(target: GpuTarget) -> None:
    """Nothing spills, everything fits, and the page on changes says what the products of up to 8 rows are made of."""
    kernels = kernels_of(target)
    listing, records = compiled(kernels, target)
    found = {k.symbol: faults_of(k, listing[k.symbol], records[k.symbol], target) for k in kernels}
    assert not any(found.values()), {symbol: faults for symbol, faults in found.items() if faults}
    counted = {k.weight.format.name: counts_of(listing[k.symbol], records[k.symbol]) for k in kernels if is_narrow(k)}
    for (fmt, what), number in told(target.name).items():
        assert counted[fmt][what] == number, f"docs/kernel-changes.md: {fmt} on {target.name} has {counted[fmt]}"


def counts_of(code: list[Instruction], record: KernelStatic) -> dict[str, int]:
    """What the page on changes counts of a kernel."""
    stems = [one.stem for one in code]
    return {"`LOP3`": stems.count("LOP3"), "`LDG`": stems.count("LDG"), "all": len(code), "registers": record.registers}


def told(name: str) -> dict[tuple[str, str], int]:
    """By format and kind, the numbers of today in the table of docs/kernel-changes.md; nothing of targets that are not in it."""
    table = re.search(r"^\| format \|.*?(?=\n\n)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert table is not None
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines()]
    column = name.removeprefix("cuda-")
    if column not in head:
        return {}
    return {(row[0], row[1]): int(row[head.index(column)].split()[-1]) for row in rows}


def test_the_page_on_changes_has_a_table() -> None:
    assert len({fmt for fmt, _ in told("cuda-sm90")}) == 4 and not told("cuda-sm75")


WAITS = "wait_for_previous();"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("", "", ""),
        (WAITS, "out[blockIdx.x] = 0.0f; " + WAITS, "STG"),
        (WAITS, "const float early = x[blockIdx.x]; " + WAITS + " if (early == 5.0f) return;", "value:0"),
        (WAITS, "const int early = __ldcg(rows + blockIdx.x); " + WAITS + " if (early == 5) return;", ""),
    ],
    ids=["as it stands", "a store moved across the wait", "a value read before the wait", "an input read before the wait"],
)
def test_what_a_kernel_does_before_its_wait_is_seen(old: str, new: str, what: str) -> None:
    kernel, target = GatherRows(256), HOPPER
    listing, _ = compiled([kernel], target, old, new)
    found = early_faults(kernel, listing[kernel.symbol], target)
    assert len(found) == bool(what) and what in "".join(found)


@pytest.mark.parametrize(("base", "faults"), [("R4", 0), ("R8", 1)])
def test_a_wide_product_is_of_single_registers(base: str, faults: int) -> None:
    """Beside the number that is multiplied lies another pointer, which the address has nothing of."""
    code = [
        Instruction("LDC.64", "R8, c[0x0][0x218]", False, -1),  # value:0
        Instruction("LDC.64", "R4, c[0x0][0x220]", False, -1),  # weight:0
        Instruction("IMAD.WIDE", f"R2, R7.reuse, 0x8, {base}", False, -1),
        Instruction("LDG.E", "R1, desc[UR8][R2.64]", False, -1),
    ]
    assert len(early_faults(RmsNorm(1024, 1e-6, ActFormat("bf16")), code, HOPPER)) == faults


# What made products of up to 8 rows and decode attention faster, taken back: (kernel, what becomes what, what is said of it).
MASKED = "INLINE u32 masked_or(u32 a, u32 mask, u32 bits) {\n"
SLOWER = {
    "two logic instructions": ("int4-g128", MASKED + "#ifdef FERRUM_EMULATE", MASKED + "#if 1", "for a kilobyte"),
    "scales behind the wait": ("int4-g128", "if (first < 8) {", WAITS + " if (first < 8) {", "loads before the wait"),
    "inputs behind the wait": ("decode", "const int known =", WAITS + " const int known =", "loads before the wait"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOWER)
def test_what_was_won_is_held(name: str) -> None:
    of, old, new, what = SLOWER[name]
    kernel = attention(HOPPER, 128, 2)[0] if of == "decode" else products(HOPPER, 6144, 1024, of, "silu_mul")[0]
    listing, records = compiled([kernel], HOPPER, old, new)
    assert what in "".join(faults_of(kernel, listing[kernel.symbol], records[kernel.symbol], HOPPER))


@pytest.mark.slow
def test_a_loop_over_compare_and_swap_is_seen() -> None:
    """Additions of 64 bits in shared memory have no instruction: the compiler makes such a loop of them."""
    kernel = GatherRows(256)
    added = "__shared__ u64 sum; atomicAdd(&sum, (u64)threadIdx.x); out[0] = (float)sum; "
    listing, _ = compiled([kernel], CUDA[0], WAITS, added + WAITS)
    assert swaps(listing[kernel.symbol])


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks"),
    [("cuda-sm80", 256, 32, 0, 8), ("cuda-sm80", 256, 33, 0, 6), ("cuda-sm89", 256, 32, 0, 6), ("cuda-sm80", 128, 32, 40960, 4),
     ("cuda-sm75", 256, 32, 0, 4), ("cuda-sm75", 128, 32, 16384, 4)],
)
def test_blocks_on_a_multiprocessor(name: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    target = BY_NAME[name]
    assert isinstance(target, GpuTarget)
    assert blocks_per_unit(target, threads, registers, shared) == blocks

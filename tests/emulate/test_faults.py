"""Faults planted in the real templates: each is caught by the kernels' own trials under the emulator's schedules.

The list is the promise that the suite would notice: a fault is a change of the rendered source, named by what was forgotten
or mistaken. A change that no longer matches its template fails here too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest

from ferrum.codegen.kernels.cases import Bench
from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.codegen.kernels.linear.large import LargeLinear
from ferrum.codegen.kernels.linear.small import SmallLinear
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.paged_attention.decode import DecodeAttention
from ferrum.codegen.kernels.paged_attention.prefill import PrefillAttention
from ferrum.codegen.kernels.rms_norm import RmsNorm
from ferrum.codegen.kernels.rope_kv import RopeKv
from ferrum.codegen.kernels.sample import GpuSample, SamplePeaks
from ferrum.codegen.kernels.schedule import Schedule as ScheduleKernel
from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.devices.emulate import SCHEDULES, KernelFault, Module, Schedule, build
from ferrum.devices.emulate.compiler import Checks

_ATTENTION = (8, 2, 64, 0, 0.125, "bf16", "bf16", 2 * 2 * 2 * BLOCK_SIZE * 64 * 2)
KERNELS: dict[str, GpuKernel] = {
    "small": SmallLinear(40, 200, RowLayout(40, 200, parse_format("bf16")), True, False, "", "f32", 2, 1, 2, 2, 3),
    "small int4": SmallLinear(40, 640, RowLayout(40, 640, parse_format("int4a-g32")), False, False, "", "f32", 1, 1, 2, 1, 2),
    "large": LargeLinear(70, 200, RowLayout(70, 200, parse_format("bf16")), False, True, "", "f32", 64, 128, 2, 3),
    "decode": DecodeAttention(*_ATTENTION, 4, 8, 4, 2),
    "decode in one": DecodeAttention(*_ATTENTION, 1, 8, 4, 2),
    "prefill": PrefillAttention(*_ATTENTION, 4, 64),
    "small fp8": SmallLinear(40, 200, RowLayout(40, 200, parse_format("fp8")), False, False, "", "f32", 1, 1, 2, 1, 2),
    "norm": RmsNorm(1000, 1e-5, ActFormat("bf16")),
    "layer norm": LayerNorm(1000, 1e-5, True, ActFormat("bf16")),
    "rope": RopeKv(6, 2, 64, 64, True, 1e-6, "bf16", 1 << 16),
    "schedule": ScheduleKernel(16),
    "peaks": SamplePeaks(700, 64, 256),
    "sample": GpuSample(700, 64, 256),
    "embedding": Embedding(37, 203, RowLayout(37, 203, parse_format("int4-g32")), 1.0),
}


@dataclass(frozen=True)
class Fault:
    """``pattern`` (a regular expression) in the rendered source of ``kernel`` becomes ``new``, at its first place.

    ``checks`` "races": it changes no number, since a collective next to it makes the lanes meet; "spaces": no emulated run shows
    it, but the address spaces of the source do.
    """

    kernel: str
    what: str
    pattern: str
    new: str
    checks: Checks | Literal["spaces"] = "none"

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what}"


# The wait for the launch before, and the same behind what follows it in a pattern.
WAIT = r"(?s)wait_for_previous\(\);"
MOVED = r"\1 wait_for_previous();"

FAULTS = (
    Fault("small", "missing wait for a copy", r"\n *copies_wait<2>\(\);", ""),
    Fault("small", "wait for one copy too few", r"copies_wait<2>\(\)", "copies_wait<3>()"),
    Fault("small", "missing barrier before shared memory serves again", r"__syncthreads\(\);(?=\n *float \*sums)", ""),
    Fault("small", "missing barrier after the sums are there", r"(= sum\[t\]\[m\]\[i\];)\n *__syncthreads\(\);", r"\1"),
    Fault("small", "missing fence before another block reads", r"__threadfence\(\);(?=\n *__syncthreads\(\);\n *if)", ""),
    Fault("small", "arrivals not put back to zero", r"if \(threadIdx.x == 0\) arrivals\[blockIdx.x\] = 0;", ""),
    Fault("small", "swapped words of a fragment", r"\{upper\[0\], lower\[0\], upper\[1\]", "{lower[0], upper[0], upper[1]"),
    Fault("small", "missing wait for the launch before", r"wait_for_previous\(\); /\*", "/*"),
    Fault("small", "unguarded tail of K", r"k0 \+ 8 \* c >= 200 \? make_uint4\(0, 0, 0, 0\) : ", ""),
    Fault("small", "unguarded tail of the columns", r"if \(column >= 40\) continue;", ""),
    Fault("small", "rows past the last are read", r"min_int\(8 \* m \+ r, rows - 1\)", "(8 * m + r)"),
    Fault("small", "wrong stride of the sums", r"\* 20 \+ 16 \* t", "* 16 + 16 * t"),
    Fault("small int4", "scale of the other half of the rows", r"scales_of_chunk\[t\]\[i >> 1\]", "scales_of_chunk[t][i & 1]"),
    Fault("small int4", "the scales of the chunk before", r"LOAD_SCALES\(chunk \+ 2\)", "LOAD_SCALES(chunk)"),
    Fault("small int4", "a warp takes the scales of the first", r"LOAD_SCALES\(first\)", "LOAD_SCALES(0)"),
    Fault("small int4", "zero point of the other half",
          r"nibble_offset\(zeros_of_chunk\[t\]\[1\]", "nibble_offset(zeros_of_chunk[t][0]"),
    Fault("small int4", "mask of a nibble too wide", r"0x000f000fu", "0x001f001fu"),
    Fault("large", "missing barrier after the wait", r"__syncthreads\(\); /\* the piece has landed", "/* the piece has landed"),
    Fault("large", "wait for one copy too few", r"copies_wait<1>\(\)", "copies_wait<2>()"),
    Fault("large", "x is copied before the wait for the launch before", WAIT + r"( /\* the first.*?)(?=float sum\[)", MOVED),
    Fault("large", "a stage too few for what is under way", r"\(piece\) % 3 \*", "(piece) % 2 *"),
    Fault("large", "unguarded tail of the rows", r"row < rows && column", "column"),
    Fault("large", "missing barrier of the warp", r"__syncwarp\(\);", ""),
    Fault("decode", "a block ends without the wait for the launch before", WAIT + r"(\n[^\n]*return;)", MOVED),
    Fault("decode", "keys are copied before the wait for the launch before", WAIT + r"(.*?)(?=const u16 \*const q_row)", MOVED),
    Fault("decode in one", "the block after the next one is taken", r"table \+ ahead \+ 4\)", "table + ahead + 8)"),
    Fault("decode", "off by one in the mask", r"key < length \?", "key <= length ?"),
    Fault("decode", "values past the end are read", r"\(number\) \* 16 \+ piece / 8 < length", "1"),
    Fault("decode", "the block table is passed over", r"\? __ldcg\(table \+ number\)", "? number"),
    Fault("decode", "sums not rescaled to a new peak", r"sum\[i\] \*= alpha\[i\];", ""),
    Fault("decode", "missing fence before another block reads", r"__threadfence\(\);(?=\n *__syncthreads\(\);\n *if)", ""),
    Fault("decode", "barrier in a branch", r"__syncthreads\(\);(?=\n *float \*merged)", "if (warp) __syncthreads();"),
    Fault("decode", "heads of another group", r"kv_head \* 4 \+ r\)", "kv_head * 3 + r)"),
    Fault("decode", "missing barrier of the warp after the wait", r"(copies_wait<1>\(\);)\n *__syncwarp\(\);", r"\1", "races"),
    Fault("decode in one", "missing barrier of the warp before a stage is filled", r"__syncwarp\(\); /\* all", "/* all", "races"),
    Fault("large", "missing barrier of the warp at the end", r"__syncwarp\(\);(?=\n *\}\n\})", "", "races"),
    Fault("prefill", "missing wait for a copy", r"copies_wait<1>\(\);", ""),
    Fault("prefill", "missing barrier before a stage is filled again", r"__syncthreads\(\); /\* all have", "/* all have"),
    Fault("prefill", "off by one at the diagonal", r"key > here", "key >= here"),
    Fault("prefill", "a tile on the diagonal is not masked", r"at \+ 64 > position0 \+ 1", "at + 64 > position0 + 64"),
    Fault("prefill", "copies of the next tile land in this one", r"stage \^ 1\)", "stage)"),
    Fault("small fp8", "the sign of a byte is lost", r"0x87f087f0u", "0x07f007f0u"),
    Fault("small fp8", "the scale of another row", r"scale\[t\]\[i >> 1\]", "scale[t][i & 1]"),
    Fault("norm", "the launch before is read before the wait", WAIT + r"(.*?sum = warp_sum\(sum\);)", MOVED),
    Fault("norm", "missing barrier between warps", r"__syncthreads\(\);\n *sum = 0.0f;", "sum = 0.0f;"),
    Fault("norm", "a shuffle too few", r"for \(int i = 16; i; i >>= 1\) x \+=", "for (int i = 8; i; i >>= 1) x +="),
    Fault("norm", "unguarded tail of the row", r"column < 1000 \? in\[column\] : 0.0f", "in[column]"),
    Fault("layer norm", "missing barrier before the mean", r"__syncthreads\(\);\n *total = 0.0f;", "total = 0.0f;"),
    Fault("layer norm", "missing barrier before the variance", r"__syncthreads\(\);\n *squares = 0.0f;", "squares = 0.0f;"),
    Fault("layer norm", "the tail of the row counts", r"if \(threadIdx.x \+ i \* 128 < 1000\) squares", "squares"),
    Fault("rope", "the cache is written before the wait for the launch before", WAIT + r"(.*)(?=\})", MOVED),
    Fault("rope", "wrong stride in the cache", r"slot % 16 \* 64", "slot % 16 * 32"),
    Fault("rope", "wrong sign of the rotation", r"a \* cosine\[i\] - b", "a * cosine[i] + b"),
    Fault("schedule", "off by one at the start of a sequence", r"query_start\[middle\] <= i", "query_start[middle] < i"),
    Fault("peaks", "the mask is passed over", r"masked && !\(mask", "0 && !(mask"),
    Fault("peaks", "logits are read before the wait for the launch before", WAIT + r"(.*?best = block_peak[^\n]*)", MOVED),
    Fault("peaks", "a store moved across the wait for the launch before",
          r"wait_for_previous\(\);", "peaks[row].id = 0; wait_for_previous();"),
    Fault("peaks", "missing barrier between biases and penalties", r"__syncthreads\(\);(?=\n *for \(int i = begin)", "", "races"),
    Fault("peaks", "unguarded tail of the vocabulary", r"min_int\(256, 700 - first\)", "256"),
    Fault("sample", "missing fence before the last block reads",
          r"__threadfence\(\);(?=\n *__syncthreads\(\);\n *if \(thread_index == 0\) s->last)", ""),
    Fault("sample", "arrivals not put back to zero", r"if \(thread_index == 0\) arrivals\[row\] = 0;", ""),
    Fault("sample", "peaks are read before the wait for the launch before", WAIT + r"(.*?const Peak best = [^\n]*)", MOVED),
    Fault("sample", "the carry of a mass is lost", r"\(before \+ low < before \? 1u : 0u\)", "0u"),
    Fault("sample", "off by one in the rank", r"\(u64\)\(count - 1\)", "(u64)count"),
    Fault("sample", "min-p is passed over", r"floor_p > 0.0f && floor_mass < mass", "0"),
    Fault("sample", "top-p is a share of all", r"share_of\(mass, limit_p\)", "share_of(row_mass(parts, 0), limit_p)"),
    Fault("sample", "missing barrier before the list is read", r"__syncthreads\(\);(?=\n *const u32 members)", "", "races"),
    Fault("sample", "missing barrier before counters are added to",
          r"__syncthreads\(\);(?=\n *const int begin = chunk)", "", "races"),
    Fault("embedding", "nibbles in their plain order", r"\(i & 1\) \* 16 \+ \(i >> 1 & 3\) \* 4", "(i & 7) * 4"),
)  # fmt: skip


@cache
def rendered(name: str = "") -> str:
    """One kernel, or all of them: what all share is then compiled once."""
    target = BY_NAME["cuda-sm80"]
    assert isinstance(target, GpuTarget)
    return render_kernels("faults", [KERNELS[name]] if name else list(KERNELS.values()), target, "0" * 64)


def caught(name: str, module: Module) -> Schedule | None:
    """The first schedule under which the kernel of ``module`` fails its trial."""
    kernel = KERNELS[name]
    for schedule in SCHEDULES:
        try:
            worst = Bench(module, schedule).error(kernel, kernel.case(np.random.default_rng(1)))
        except (KernelFault, AssertionError):
            return schedule
        if not worst <= kernel.tolerance:
            return schedule
    return None


@pytest.mark.parametrize("checks", ["none", "races"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_as_they_stand_pass(name: str, checks: Checks) -> None:
    assert caught(name, build(rendered(), "cuda", checks=checks)) is None


def first_of_each(faults: Sequence[Fault]) -> list[Any]:
    """The first fault of each kernel is tried every time, the others in the slow set: each is a compile of its own."""
    first = {fault.kernel: fault for fault in reversed(faults)}
    return [pytest.param(f, id=str(f), marks=() if f is first[f.kernel] else pytest.mark.slow) for f in faults]


def planted(fault: Fault) -> str:
    """The rendered source with the fault in it."""
    source, count = re.subn(fault.pattern, fault.new, rendered(fault.kernel), count=1)
    assert count == 1, f"the template has changed: {fault.pattern!r} is not in it"
    return source


def test_every_fault_has_its_place_in_the_templates() -> None:
    assert all(planted(fault) for fault in FAULTS)


@pytest.mark.parametrize("fault", first_of_each(FAULTS))
def test_every_planted_fault_is_caught(fault: Fault) -> None:
    assert fault.checks != "spaces"
    assert caught(fault.kernel, build(planted(fault), "cuda", checks=fault.checks)) is not None, fault


def test_there_are_faults_of_every_kind_that_matters() -> None:
    assert len(FAULTS) >= 50 and {fault.kernel for fault in FAULTS} == set(KERNELS)
    assert any("a store moved across the wait" in fault.what for fault in FAULTS)
    for word in ("barrier", "wait", "off by one", "fragment", "stride", "unguarded tail", "fence", "mask", "launch before"):
        assert any(word in fault.what for fault in FAULTS), word

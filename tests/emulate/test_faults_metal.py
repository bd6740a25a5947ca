"""Faults planted in the Metal templates, as in ``test_faults.py`` for CUDA."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from ferrum.codegen.kernels.cases import Bench
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.paged_attention.decode import DecodeAttention
from ferrum.codegen.kernels.paged_attention.plain import PlainAttention
from ferrum.codegen.kernels.paged_attention.prefill import PrefillAttention
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.devices.emulate import SCHEDULES, KernelFault, Module, Schedule, build, metal
from ferrum.devices.emulate.compiler import Checks
from tests.emulate.test_faults import KERNELS as CUDA_KERNELS
from tests.emulate.test_faults import Fault, first_of_each

_BARRIER = r"threadgroup_barrier\(mem_flags::mem_threadgroup\);"
_ATTENTION = (8, 2, 64, 0, 0.125, "bf16", "bf16", 2 * 2 * 2 * BLOCK_SIZE * 64 * 2)
KERNELS: dict[str, GpuKernel] = {
    **{name: CUDA_KERNELS[name] for name in ("small", "large", "norm", "rope", "peaks", "sample")},
    "decode": DecodeAttention(*_ATTENTION, 4, 8, 4, 0),
    "prefill": PrefillAttention(*_ATTENTION, 4, 32),
    "attention": PlainAttention(*_ATTENTION),
}
FAULTS = (
    Fault("small", "missing barrier before the sums are read", _BARRIER + r"(?=\n *coherent\(device\) device float \*part)", ""),
    Fault("small", "missing fence before another group reads", r"atomic_thread_fence[^;]*;\n *threadgroup_barrier[^;]*;", ""),
    Fault("small", "missing barrier after the arrival", r"(== 1;\n) *" + _BARRIER, r"\1", "races"),
    Fault("small", "arrivals not put back to zero", r"if \(index == 0\) atomic_store_explicit[^;]*;", ""),
    Fault("small", "a shuffle too few", r"y \+= simd_shuffle_xor\(y, 2\);", ""),
    Fault("small", "unguarded tail of K", r"k0 \+ 8 \* c >= 200 \? uint4\(0\) : ", ""),
    Fault("small", "unguarded tail of the columns", r"if \(column >= 40\) continue;", ""),
    Fault("small", "wrong stride of the sums", r"sums\[\(m0 \+ m\) \* 20", "sums[(m0 + m) * 16"),
    Fault("large", "missing barrier before a piece is overwritten", _BARRIER + r" /\* all are", "/* all are"),
    Fault("large", "missing barrier before the products", _BARRIER + r"(?=\n *for \(int kk)", ""),
    Fault("large", "missing barrier before memory serves again", _BARRIER + r"(?=\n *threadgroup float \*staged)", ""),
    Fault("large", "operand not transposed", r"ulong2\(0, 0\), true", "ulong2(0, 0), false"),
    Fault("large", "unguarded tail of the rows", r"row >= rows \|\| column", "column"),
    Fault("norm", "missing barrier between SIMD groups", r"(= sum;\n) *" + _BARRIER, r"\1"),
    Fault("norm", "a barrier that does not order memory", r"(= sum;\n) *" + _BARRIER,
          r"\1threadgroup_barrier(mem_flags::mem_none);", "races"),
    Fault("rope", "wrong sign of the rotation", r"a \* cosine\[i\] - b", "a * cosine[i] + b"),
    Fault("decode", "off by one in the mask", r"valid = key < stop", "valid = key <= stop"),
    Fault("decode", "missing barrier before the shares are merged", r"(= sum\[h\];\n *\}\n) *" + _BARRIER, r"\1"),
    Fault("decode", "missing fence before another group reads", r"atomic_thread_fence[^;]*;\n *threadgroup_barrier[^;]*;", ""),
    Fault("decode", "keys past the end of a split", r"min_int\(begin \+ per_split \* 16, length\)", "length"),
    Fault("decode", "heads of another group", r"kv_head \* 256", "kv_head * 192"),
    Fault("prefill", "missing barrier before a tile is overwritten", _BARRIER + r" /\* all are done", "/* all are done"),
    Fault("prefill", "missing barrier before the keys make room for scores", _BARRIER + r" /\* all have", "/* all have"),
    Fault("prefill", "off by one at the diagonal", r"key > here", "key >= here"),
    Fault("prefill", "sums not rescaled to a new peak", r"= alpha;", "= 1.0f;"),
    Fault("prefill", "unguarded tail of the rows", r"if \(row < rows\) out", "out"),
    Fault("attention", "off by one in the mask", r"at <= position; \+\+at", "at < position; ++at"),
    Fault("small", "the missing coherent",
          r"coherent\(device\) device float \*part\b", "device float *part", "spaces"),
    Fault("peaks", "the mask is passed over", r"masked && !\(mask", "0 && !(mask"),
    Fault("peaks", "missing barrier between biases and penalties", _BARRIER + r"(?=\n *for \(int i = begin)", "", "races"),
    Fault("sample", "the missing coherent",
          r"coherent\(device\) device u32 \*const row_parts", "device u32 *const row_parts", "spaces"),
    Fault("sample", "missing fence before the last group reads",
          r"atomic_thread_fence[^;]*;\n *threadgroup_barrier[^;]*;(?=\n *if \(thread_index == 0\) s->last)", ""),
    Fault("sample", "arrivals not put back to zero", r"if \(thread_index == 0\) atomic_store_explicit\(&arrivals[^;]*;", ""),
    Fault("sample", "off by one in the rank", r"\(u64\)\(count - 1\)", "(u64)count"),
    Fault("sample", "top-p is a share of all", r"share_of\(mass, limit_p\)", "share_of(row_mass(parts, 0), limit_p)"),
    Fault("attention", "the block table is passed over", r"table\[at / 16\]", "(at / 16)"),
)  # fmt: skip


@cache
def rendered(name: str = "") -> str:
    """One kernel, or all of them: what all share is then compiled once."""
    target = BY_NAME["metal-m1"]
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


def test_the_kernels_as_they_stand_have_no_complaints() -> None:
    assert metal.check(rendered()) == ""


@pytest.mark.parametrize("checks", ["none", "races"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_as_they_stand_pass(name: str, checks: Checks) -> None:
    assert caught(name, build(rendered(), "metal", checks=checks)) is None


def planted(fault: Fault) -> str:
    """The rendered source with the fault everywhere in it: a product has a function for each number of rows."""
    source, count = re.subn(fault.pattern, fault.new, rendered(fault.kernel))
    assert count >= 1, f"the template has changed: {fault.pattern!r} is not in it"
    return source


def test_every_fault_has_its_place_in_the_templates() -> None:
    assert all(planted(fault) for fault in FAULTS)


@pytest.mark.parametrize("fault", first_of_each(FAULTS))
def test_every_planted_fault_is_caught(fault: Fault) -> None:
    if fault.checks == "spaces":  # the emulator's memory is all coherent: the compiler's address spaces tell
        assert "coherent_device" in metal.check(planted(fault))
        return
    assert caught(fault.kernel, build(planted(fault), "metal", checks=fault.checks)) is not None, fault


def test_there_are_faults_of_every_kind_that_matters() -> None:
    assert len(FAULTS) >= 30 and {fault.kernel for fault in FAULTS} == set(KERNELS)
    for word in ("barrier", "coherent", "off by one", "stride", "unguarded tail", "fence", "mask"):
        assert any(word in fault.what for fault in FAULTS), word

"""Kernels for GPUs without bfloat16 matrix instructions and asynchronous copies: the same over what stands in for both."""

from __future__ import annotations

import numpy as np
import pytest

from ferrum.codegen.kernels.cases import Bench
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.linear.choose import gpu_variants as linear_variants
from ferrum.codegen.kernels.paged_attention.choose import gpu_variants as attention_variants
from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.prove_kernels import Known, prove_kernels
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.devices.emulate import SCHEDULES, build
from tests.codegen.test_cuda_kernels import FORMATS

T4 = BY_NAME["cuda-sm75"]
assert isinstance(T4, GpuTarget)
HEAD_DIMS = (64, 96, 128, 256)


def products(fmt: str, n: int = 40, k: int = 200) -> list[GpuKernel]:
    """The products of an odd shape that the target takes, for every number of rows."""
    layout = RowLayout(n, k, parse_format(fmt))
    fields = {"n": n, "k": k, "weight": layout, "bias": True, "residual": True, "activation": "", "out": "f32"}
    return [v.kernel for v in linear_variants(fields, T4, "tokens")]


def attention(dim: int) -> list[GpuKernel]:
    fields = {"num_heads": 6, "num_kv_heads": 2, "head_dim": dim, "window": 0, "softmax_scale": dim**-0.5}
    fields |= {"kv_dtype": "bf16", "out": "bf16", "block_bytes": 2 * 2 * 2 * 16 * dim * 2}
    return [v.kernel for v in attention_variants(fields, T4)]


def check(kernels: list[GpuKernel], schedules: tuple[object, ...]) -> None:
    module = build(render_kernels("test", kernels, T4, "0" * 64), "cuda")
    for kernel in kernels:
        for schedule in schedules:
            found = Bench(module, schedule).error(kernel, kernel.case(np.random.default_rng(1)))
            assert found <= kernel.tolerance, (kernel, str(schedule), found)


def test_no_instruction_is_too_new() -> None:
    source = render_kernels("test", [*products("bf16"), *attention(128)], T4, "0" * 64)
    assert not any(word in source for word in ("mma.sync", "cp.async", "bf16x2.f32", "rn.bf16x2"))


def test_all_fit_in_the_shared_memory_of_a_block() -> None:
    for kernel in [k for fmt in FORMATS for k in products(fmt, 4096, 4096)] + [k for dim in HEAD_DIMS for k in attention(dim)]:
        assert kernel.geometry("tokens").shared <= T4.shared_bytes, kernel


def test_a_swapped_fragment_is_caught() -> None:
    kernel = products("bf16")[0]
    source = render_kernels("test", [kernel], T4, "0" * 64)
    for text in (source, source.replace("column + 4 * i + t", "column + 4 * (1 - i) + t")):
        error = Bench(build(text, "cuda")).error(kernel, kernel.case(np.random.default_rng(1)))
        assert (error <= kernel.tolerance) == (text == source)


def test_what_was_proved_on_other_fragments_is_tried_again() -> None:
    """The text of a kernel is the same on newer GPUs; what it stands on is not."""
    kernel, known = products("bf16")[0], Known()
    for name, tried in (("cuda-sm80", 1), ("cuda-sm86", 1), ("cuda-sm75", 2)):
        target = BY_NAME[name]
        assert isinstance(target, GpuTarget)
        prove_kernels([kernel], target, known)
        assert len(known) == tried


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fmt", FORMATS)
def test_products_of_every_format(fmt: str) -> None:
    check([*products(fmt), *products(fmt, 90, 330)], tuple(SCHEDULES))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_attention_of_every_head_size(dim: int) -> None:
    check(attention(dim), tuple(SCHEDULES))

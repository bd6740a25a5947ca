"""A NaN that is rounded to bfloat16 stays one, on every device and in numpy; the largest numbers and infinities as always."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.codegen.kernels.cases import Bench, counts
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.layouts import to_bf16, to_f32
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.prove import runs_here
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, TARGETS, GpuTarget, Target
from ferrum.devices.emulate import build
from tests.codegen.kernel_harness import Call, run

# NaNs of both signs, with the payloads of hardware, of x86's default and those whose rounding carries into the sign
BITS = np.array(
    [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFF8000, 0x7F800000, 0xFF800000, 0x7F7FFFFF,
     0xFF7FFFFF, 0x00000001, 0x80000000, 0x3F808000, 0x3F818000, 0x3F80FFFF],
    np.uint32,
)  # fmt: skip
NUMBERS = BITS.view(np.float32)
HERE = [t for t in TARGETS if runs_here(t.arch, t.requires)]


def check(bits: NDArray[np.uint16]) -> None:
    """The NaNs are NaNs, all else is as torch rounds it."""
    import torch

    expected = torch.from_numpy(NUMBERS).bfloat16().float().numpy()
    np.testing.assert_array_equal(to_f32(bits), expected)


def test_numpy() -> None:
    check(to_bf16(NUMBERS))


@given(st.integers(0, (1 << 32) - 1))
def test_numpy_with_any_bits(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(to_f32(to_bf16(value)))[0] == np.isnan(value)[0]


@pytest.mark.parametrize("language", ["cuda", "metal"])
def test_gpus(language: Literal["cuda", "metal"]) -> None:
    kernel = Quantize(len(BITS), ActFormat("bf16"))
    target = BY_NAME[{"cuda": "cuda-sm80", "metal": "metal-m1"}[language]]
    assert isinstance(target, GpuTarget)
    bench = Bench(build(render_kernels("test", [kernel], target, "0" * 64), language))
    result = np.zeros((1, len(BITS)), np.uint16)
    bench.run(kernel, {"value:0": NUMBERS[None], "result": result}, counts(1))
    check(result[0])


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_cpus(target: Target) -> None:
    act = ActFormat("bf16")
    k = len(BITS)
    slots = run([Call(Quantize(k, act), 1, 2)], [4 * k, act.row_bytes(k)], 1, {1: NUMBERS[None]}, bytes(64), target)
    check(slots[2].view(np.uint16).ravel()[:k])

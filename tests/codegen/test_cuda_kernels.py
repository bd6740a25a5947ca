"""Each CUDA kernel alone in emulation against its reference: drawn shapes, all formats, every schedule of the emulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ferrum.codegen.kernels.cases import Bench, counts, rows_in
from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.gather_rows import GatherRows
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.codegen.kernels.linear.gpu import GpuLinear
from ferrum.codegen.kernels.linear.large import LargeLinear
from ferrum.codegen.kernels.linear.plain import PlainLinear
from ferrum.codegen.kernels.linear.small import SmallLinear
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.paged_attention.decode import DecodeAttention
from ferrum.codegen.kernels.paged_attention.gpu import Paged
from ferrum.codegen.kernels.paged_attention.plain import PlainAttention
from ferrum.codegen.kernels.paged_attention.prefill import PrefillAttention
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.kernels.rms_norm import RmsNorm
from ferrum.codegen.kernels.rope_kv import RopeKv
from ferrum.codegen.kernels.rope_table import RopeTable
from ferrum.codegen.kernels.sample import GpuSample, SamplePeaks
from ferrum.codegen.kernels.schedule import Schedule
from ferrum.codegen.layouts import RowLayout, parse_format, stored
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.devices.emulate import SCHEDULES, build
from ferrum.graphs.ops import GATES

FORMATS = ("bf16", "fp8", "int8-g32", "int8-g64", "int4-g32", "int4-g128", "int4a-g64")


def bench(kernels: Sequence[GpuKernel]) -> Bench:
    target = BY_NAME["cuda-sm80"]
    assert isinstance(target, GpuTarget)
    return Bench(build(render_kernels("test", kernels, target, "0" * 64), "cuda"))


def check(kernels: Sequence[GpuKernel], seed: int) -> None:
    """Every kernel under every schedule, compiled together."""
    made = bench(kernels)
    for kernel in kernels:
        for schedule in SCHEDULES:
            found = Bench(made.module, schedule).error(kernel, kernel.case(np.random.default_rng(seed)))
            assert found <= kernel.tolerance, (kernel, str(schedule), found)


def draw_linear(random: np.random.Generator, fmt: str) -> list[GpuLinear]:
    """A small and a large product of one odd shape; float32 has one kernel for all."""
    activation = str(random.choice(["", *GATES]))
    halves = 2 if activation else 1
    n, k = int(random.integers(1, 90)) * halves, int(random.integers(1, 400))
    layout = RowLayout(n, k, parse_format(fmt), halves)
    bias, residual = bool(random.integers(2)), not activation and bool(random.integers(2))
    out = "f32" if residual or random.integers(2) or fmt == "f32" else "bf16"
    shape = (n, k, layout, bias, residual, activation, out)
    if fmt == "f32":
        return [PlainLinear(*shape, int(random.integers(1, 6)))]
    row_tiles, weight_tiles = (int(random.choice(c)) for c in ([1, 2, 4, 8], [1, 2]))
    warps, splits, stages = (int(random.choice(c)) for c in ([1, 2, 4, 8], [1, 2, 4], [2, 3, 5]))
    block_n, stages_x = int(random.choice([64, 128])), int(random.choice([3, 4]))
    return [
        SmallLinear(*shape, row_tiles, weight_tiles, warps, splits, stages),
        LargeLinear(*shape, block_n, 128, 2 if block_n == 64 else int(random.choice([2, 4])), stages_x),
    ]


@pytest.mark.parametrize(("first", "end"), ((0, 1), pytest.param(1, 3, marks=pytest.mark.slow)))
@pytest.mark.parametrize("fmt", ("f32", *FORMATS, pytest.param("int8-g128", marks=pytest.mark.slow)))
def test_linear(fmt: str, first: int, end: int) -> None:
    random = np.random.default_rng(len(fmt))
    shapes = [draw_linear(random, fmt) for _ in range(end)]
    check([kernel for kernels in shapes[first:] for kernel in kernels], 1)


@pytest.mark.parametrize("fmt", ("bf16", "int4-g32"))
def test_linear_with_fewer_rows_than_the_recording(fmt: str) -> None:
    """One row, none, and a grid for more rows than the step has."""
    layout = RowLayout(40, 72, parse_format(fmt))
    shape = (40, 72, layout, True, True, "", "f32")
    kernels: list[GpuLinear] = [SmallLinear(*shape, 2, 1, 2, 2, 2), LargeLinear(*shape, 64, 128, 2, 3)]
    made = bench(kernels)
    for kernel in kernels:
        assert made.error(kernel, kernel.case(np.random.default_rng(0), 1, 300)) <= 1e-2
        assert made.error(kernel, kernel.case(np.random.default_rng(0), 2, 16)) <= 1e-2
        untouched = np.full((1, 40), 7, np.float32)
        arrays = {"weight:0": np.zeros(layout.nbytes, np.uint8), "value:0": np.zeros((1, 72), np.uint16), "result": untouched}
        arrays |= {"weight:1": np.zeros(40, np.float32), "value:1": np.zeros((1, 40), np.float32), "count": np.zeros(1, np.int32)}
        made.run(kernel, arrays, counts(8))
        assert (untouched == 7).all()


def test_columns_far_apart_in_size() -> None:
    """A row of large values must not change the others: fragments that are swapped would show here."""
    layouts = [RowLayout(24, 160, parse_format(fmt)) for fmt in FORMATS]
    kernels = [SmallLinear(24, 160, layout, False, False, "", "f32", 1, 1, 2, 1, 3) for layout in layouts]
    made = bench(kernels)
    x = np.zeros((3, 160), np.float32)
    x[0, 5], x[1, 70], x[2, 159] = 1, 1, 1
    w = np.arange(24 * 160, dtype=np.float32).reshape(24, 160) % 7 - 3
    w *= 10.0 ** (np.arange(24)[:, None] % 4)
    for layout, kernel in zip(layouts, kernels, strict=True):
        raw, result = stored(w, layout), np.full((3, 24), np.nan, np.float32)
        made.run(kernel, {"weight:0": raw, "value:0": rows_in(x, "bf16")[0], "result": result}, counts(3))
        expected = layout.decode(raw.data)[:, [5, 70, 159]].T
        np.testing.assert_allclose(result, expected, rtol=1e-6, err_msg=layout.format.name)


@pytest.mark.parametrize("dim", (64, 256, *(pytest.param(dim, marks=pytest.mark.slow) for dim in (96, 128))))
def test_attention(dim: int) -> None:
    random = np.random.default_rng(dim)
    kernels: list[GpuKernel] = []
    for window in (0, int(random.integers(1, 90))):
        group, kv_heads = int(random.integers(1, 17)), int(random.integers(1, 3))
        shape = (group * kv_heads, kv_heads, dim, window, float(dim**-0.5), "bf16", str(random.choice(["f32", "bf16"])))
        block = 2 * kv_heads * 2 * BLOCK_SIZE * dim * 2
        warps, keys = (4, 64) if dim <= 128 else (2, 32)
        kernels.append(DecodeAttention(*shape, block, int(random.choice([1, 2, 32])), 0, warps, 2))
        kernels.append(PrefillAttention(*shape, block, 4, keys))
    check(kernels, dim)


@pytest.mark.parametrize("kind", ("f32", "bf16"))
def test_plain_attention(kind: str) -> None:
    kernels = []
    for dim, window in ((16, 0), (80, 5), (200, 0)):
        block = 2 * 2 * BLOCK_SIZE * dim * (2 if kind == "bf16" else 4)
        kernels.append(PlainAttention(6, 2, dim, window, float(dim**-0.5), kind, kind, 2 * block))
    check(kernels, 3)


def test_rows() -> None:
    kernels: list[GpuKernel] = []
    for fmt in ("f32", *FORMATS):
        kernels.append(Embedding(37, 203, RowLayout(37, 203, parse_format(fmt)), 0.5))
    for k in (1, 31, 203, 1000, 5120):
        kernels += [RmsNorm(k, 1e-5, ActFormat("bf16")), RmsNorm(k, 1e-5, ActFormat("f32"))]
        kernels += [LayerNorm(k, 1e-5, True, ActFormat("bf16")), LayerNorm(k, 1e-5, False, ActFormat("f32"))]
        kernels += [Quantize(k, ActFormat("bf16")), GatherRows(k)]
    for half in (8, 64):
        kernels.append(RopeTable(half, 1.5))
    for dim, rope, norm, kind in ((64, 64, True, "bf16"), (128, 64, False, "bf16"), (80, 80, True, "f32"), (16, 8, False, "f32")):
        kernels.append(RopeKv(6, 2, dim, rope, norm, 1e-6, kind, 1 << 16))
    kernels += [Schedule(tile) for tile in (1, 4, 64)]
    kernels += [SamplePeaks(777, 128, 256), GpuSample(777, 128, 256)]
    check(kernels, 4)


@pytest.mark.parametrize("lengths", ((1,), (1, 1, 1), (500,), (2,) * 9, (1, 300, 1, 64, 65)))
def test_schedule(lengths: tuple[int, ...]) -> None:
    for tile in (3, 64):
        kernel = Schedule(tile)
        assert bench([kernel]).error(kernel, kernel.case(np.random.default_rng(0), lengths)) == 0


def test_what_was_never_written_is_not_read() -> None:
    """The trials' caches hold NaN where no token is; one key more than there is would make every answer NaN."""
    kernel = DecodeAttention(1, 1, 64, 0, 0.125, "bf16", "f32", 2 * BLOCK_SIZE * 64 * 2, 1, 0, 4, 2)
    arrays, _, _ = Paged(kernel, ((17, 1),)).make(np.random.default_rng(0))
    arrays["input:context_len"] = np.array([18], np.int32)
    bench([kernel]).run(kernel, arrays, counts(1))
    assert np.isnan(arrays["result"].astype(np.float32)).any()

"""Metal sources: SIMD groups, threadgroups, values, matrices, and address spaces."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ferrum.devices.emulate import SCHEDULES, KernelFault, Schedule, metal
from tests.emulate.sources import module, text

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@every_schedule
def test_simd_groups(schedule: Schedule) -> None:
    values = np.random.default_rng(1).integers(0, 100, 64, np.int32)
    out = np.zeros((64, 16), np.int32)
    module("groups.metal").launch("simd", grid=(1,), block=(64,), args=[out, values], schedule=schedule)
    for t in range(64):
        lane, own, quad = t % 32, values[t // 32 * 32 :][:32], values[t // 4 * 4 :][:4]
        assert out[t].tolist() == [
            own.sum(),
            own.max(),
            own.min(),
            own[lane ^ 5],
            own[lane + 3 if lane + 3 < 32 else lane],
            own[lane - 3 if lane >= 3 else lane],
            own[7],
            own[0],
            own[: lane + 1].sum(),
            own[:lane].sum(),
            np.int32(np.uint32(sum(1 << i for i in range(32) if own[i] & 1))),
            int((own > 98).any()) + 2 * int((own > 1).all()),
            quad.sum(),
            quad[2],
            own[31 - lane],
            np.bitwise_xor.reduce(own),
        ]


def test_values_vectors_and_positions() -> None:
    places = np.array([((1, 2, 3, 4), 7)], np.dtype([("corner", "f4", 4), ("width", "u4")]))
    out, table = np.zeros(8, np.float32), np.array([0, 0.25], np.float32)
    module("groups.metal").launch("values", grid=(1, 2), block=(4,), args=[out, places, table])
    v = np.array([1.5, 2, 3, 4]) * [1, 2, 3, 4] + [1, 2.5, 0, 1]
    i = np.arange(8)
    expected = v.sum() + 0.25 + 7 + i // 4 + 4 + np.where(i > 1, np.clip(i, 2, 3), 0) + 0xBC
    np.testing.assert_allclose(out, expected)


@every_schedule
def test_threadgroup_memory_is_poisoned(schedule: Schedule) -> None:
    out = np.zeros((5, 2), np.int32)
    module("groups.metal").launch("untouched", grid=(5,), block=(4,), args=[out], shared=16, schedule=schedule)
    assert (out == (0x7E7E7E7E if schedule.order == "reverse" else -1)).all()


@every_schedule
def test_all_threads_of_a_threadgroup_reach_its_barriers(schedule: Schedule) -> None:
    with pytest.raises(KernelFault, match="exit"):
        module("groups.metal").launch("leavers", grid=(1,), block=(64,), args=[np.zeros(64, np.int32)], schedule=schedule)


def test_a_sum_of_half_a_simd_group_is_the_language_s_business() -> None:
    out = np.zeros(32, np.int32)
    module("groups.metal").launch("parted", grid=(1,), block=(32,), args=[out])
    assert out[0] == 32 + 16  # lanes that have left take no part


def test_matrices_scaled_and_transposed() -> None:
    x, out = np.arange(64, dtype=np.float32).reshape(8, 8), np.zeros((8, 8), np.float32)
    module("groups.metal").launch("diagonal", grid=(1,), block=(32,), args=[out, x])
    np.testing.assert_array_equal(out, 2 * x.T)


@every_schedule
def test_product_of_matrices(schedule: Schedule) -> None:
    m, n, k = 45, 70, 80
    random = np.random.default_rng(2)
    a, b = (random.normal(size=(rows, k)).astype(np.float16) for rows in (m, n))
    c = np.full((m, n), np.nan, np.float32)
    shape = np.array([m, n, k], np.uint32)
    module("gemm.metal").launch("gemm", grid=(3, 2), block=(128,), args=[a, b, c, shape], shared=2048, schedule=schedule)
    np.testing.assert_allclose(c, a.astype(np.float32) @ b.astype(np.float32).T, rtol=1e-4, atol=1e-4)


@every_schedule
def test_rows(schedule: Schedule) -> None:
    random = np.random.default_rng(3)
    x, w = random.normal(size=(5, 512)).astype(np.float16), random.normal(size=512).astype(np.float16)
    y = np.zeros_like(x)
    kernels = module("rows.metal")
    kernels.launch("rms_norm", grid=(5,), block=(96,), args=[x, w, y, 512], schedule=schedule)
    wide = x.astype(np.float32)
    expected = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-6) * w.astype(np.float32)
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2e-3, atol=2e-3)
    z, rows = random.normal(size=(5, 77)).astype(ml_dtypes.bfloat16), np.zeros(1, np.uint32)
    out = np.zeros_like(z)
    kernels.launch("softmax", grid=(5,), block=(32,), args=[z, out, 77, rows], schedule=schedule)
    power = np.exp(z.astype(np.float32))
    np.testing.assert_allclose(out.astype(np.float32), power / power.sum(-1, keepdims=True), rtol=1e-2)
    assert rows[0] == 5


@pytest.mark.parametrize("name", ["groups.metal", "gemm.metal", "rows.metal"])
def test_address_spaces_of_right_sources(name: str) -> None:
    assert metal.check(text(name)) == ""


@pytest.mark.parametrize(
    "body",
    [
        "float *p = x;",
        "device float *p = t; x[0] = p[0];",
        "threadgroup float *p = x; x[0] = p[0];",
        "n = 3;",
        "threadgroup float y[4]; device float *p = y; x[0] = p[0];",
        "x[0] = max(1.0f, 1);",
    ],
)
def test_sources_that_mix_address_spaces_or_types(body: str) -> None:
    source = (
        "#include <metal_stdlib>\nusing namespace metal;\n"
        "kernel void k(device float *x [[buffer(0)]], constant int &n [[buffer(1)]], threadgroup float *t [[threadgroup(0)]]) "
        f"{{\n  {body}\n}}\n"
    )
    assert "kernels:4" in metal.check(source)

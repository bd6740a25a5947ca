"""Tensor-core fragments by the documented layouts, word operations, and small floats, against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulate.sources import module

KERNELS = "matrix.cu"
LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4


def words_at(m: NDArray[np.generic], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The 32-bit words that start at these elements."""
    per = 4 // m.itemsize
    return np.array([np.ascontiguousarray(m[r, c : c + per]).view(np.uint32)[0] for r, c in zip(rows, columns, strict=True)])


def fragment_a(a: NDArray[np.generic], words: int) -> NDArray[np.uint32]:
    """``a [16, k]`` as the registers ``[32, words]``: PTX manual, "Matrix Fragments for mma.m16n8k…"."""
    per = 4 // a.itemsize
    out = np.zeros((32, words), np.uint32)
    for w in range(words):
        rows = GROUP + 8 * (w % 2)
        first = per * MEMBER + 4 * per * (w // 2)
        out[:, w] = words_at(a, rows, first)
    return out


def fragment_b(b: NDArray[np.generic], words: int) -> NDArray[np.uint32]:
    """``b [8, k]``, a column of the product to a row, as the registers ``[32, words]``."""
    per = 4 // b.itemsize
    out = np.zeros((32, words), np.uint32)
    for w in range(words):
        first = per * MEMBER + 4 * per * w
        out[:, w] = words_at(b, GROUP, first)
    return out


def fragment_c(c: NDArray[np.generic]) -> NDArray[np.generic]:
    rows, columns = np.stack([GROUP, GROUP, GROUP + 8, GROUP + 8], 1), 2 * MEMBER[:, None] + [0, 1, 0, 1]
    return np.ascontiguousarray(c[rows, columns])


PRODUCTS = {
    "m16n8k16_bf16": (ml_dtypes.bfloat16, 16, 4),
    "m16n8k16_f16": (np.float16, 16, 4),
    "m16n8k8_bf16": (ml_dtypes.bfloat16, 8, 2),
    "m16n8k8_f16": (np.float16, 8, 2),
    "m16n8k8_tf32": (np.float32, 8, 4),
    "m16n8k32_s8": (np.int8, 32, 4),
    "m16n8k16_s8": (np.int8, 16, 2),
    "m16n8k32_e4m3": (ml_dtypes.float8_e4m3fn, 32, 4),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_fragments(name: str) -> None:
    kind, k, words = PRODUCTS[name]
    random = np.random.default_rng(k)
    integer = kind is np.int8
    draw = (lambda *shape: random.integers(-128, 128, shape)) if integer else (lambda *shape: random.normal(size=shape))
    a, b = draw(16, k).astype(kind), draw(8, k).astype(kind)
    if kind is np.float32:  # what tf32 keeps
        a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    wide = np.int32 if integer else np.float32
    c = draw(16, 8).astype(wide)
    expected = a.astype(wide) @ b.astype(wide).T + c
    out = np.zeros((32, 4), wide)
    noise = np.uint32(0x1FFF if kind is np.float32 else 0)
    args = [out, fragment_a(a, words) | noise, fragment_b(b, words // 2) | noise, fragment_c(c)]
    module(KERNELS).launch(name, grid=(1,), block=(32,), args=args)
    if integer:
        np.testing.assert_array_equal(out, fragment_c(expected))
    else:
        np.testing.assert_allclose(out, fragment_c(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transpose", [0, 1])
def test_matrices_to_registers_and_back(count: int, transpose: int) -> None:
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((32, 4), np.uint32)
    module(KERNELS).launch("load_matrices", grid=(1,), block=(32,), args=[out, matrices, count, transpose])
    for i in range(count):
        m = matrices[i].T if transpose else matrices[i]
        low, high = m[GROUP, 2 * MEMBER].astype(np.uint32), m[GROUP, 2 * MEMBER + 1].astype(np.uint32)
        np.testing.assert_array_equal(out[:, i], low | high << 16)
    back = np.zeros((count, 8, 8), np.uint16)
    module(KERNELS).launch("store_matrices", grid=(1,), block=(32,), args=[back, out, count, transpose])
    np.testing.assert_array_equal(back, matrices[:count])


def test_word_operations() -> None:
    n = 500
    values = np.random.default_rng(5).integers(0, 1 << 32, (n, 3), np.uint32)
    out = np.zeros((n, 12), np.uint32)
    module(KERNELS).launch("words", grid=(4,), block=(128,), args=[out, values, n])
    for (a, b, c), found in zip(values.tolist(), out.tolist(), strict=True):
        bytes_of = [(b << 32 | a) >> 8 * i & 0xFF for i in range(8)]
        picked = [c >> 4 * i & 15 for i in range(4)]
        prmt = sum((bytes_of[p & 7] if p < 8 else 0xFF * (bytes_of[p & 7] >> 7)) << 8 * i for i, p in enumerate(picked))
        perm = sum(bytes_of[p & 7] << 8 * i for i, p in enumerate(picked))
        parts = [([x >> 8 * i & 0xFF for i in range(4)]) for x in (a, b)]
        signed = [[v - 256 * (v >> 7) for v in p] for p in parts]
        s32 = [x - (x >> 31 << 32) for x in (a, b)]
        assert found == [
            a & b | c,
            a ^ b ^ c,
            prmt,
            perm,
            (sum(x * y for x, y in zip(*signed, strict=True)) + c) & 0xFFFFFFFF,
            (sum(x * y for x, y in zip(*parts, strict=True)) + c) & 0xFFFFFFFF,
            ((b << 32 | a) << (c & 31)) >> 32 & 0xFFFFFFFF,
            (b << 32 | a) >> (c & 31) & 0xFFFFFFFF,
            int(f"{a:032b}"[::-1], 2),
            a.bit_count() + 100 * (32 - b.bit_length()) + 10000 * ((c & -c).bit_length()),
            a * b >> 32,
            s32[0] * s32[1] >> 32 & 0xFFFFFFFF,
        ]


def same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[~np.isnan(found)], expected[~np.isnan(expected)])


def test_every_small_float() -> None:
    halves, bfloats, eights = (np.zeros(1 << 16, np.float32) for _ in range(3))
    module(KERNELS).launch("to_floats", grid=(256,), block=(256,), args=[halves, bfloats, eights])
    bits = np.arange(1 << 16, dtype=np.uint16)
    same(halves, bits.view(np.float16).astype(np.float32))
    same(bfloats, bits.view(ml_dtypes.bfloat16).astype(np.float32))
    eight = np.where(bits & 1, bits >> 8, bits & 0xFF).astype(np.uint8)
    same(eights, eight.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_rounding_to_small_floats() -> None:
    random = np.random.default_rng(6)
    edges = [0, -0.0, 448, 464, 463.9, 480, -1e9, 65504, 65520, np.inf, -np.inf, 2**-10, 3 * 2**-10, 2**-9, 1e-30]
    drawn = random.normal(size=(1 << 14) - len(edges)) * 10.0 ** random.integers(-9, 5, (1 << 14) - len(edges))
    values = np.concatenate([edges, drawn]).astype(np.float32)
    halves, bfloats = np.zeros(1 << 14, np.uint16), np.zeros(1 << 14, np.uint16)
    eights = np.zeros(1 << 14, np.uint8)
    module(KERNELS).launch("from_floats", grid=(64,), block=(256,), args=[halves, bfloats, eights, values])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(halves, values.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(bfloats, values.astype(ml_dtypes.bfloat16).view(np.uint16))
    clipped = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(eights, clipped.view(np.uint8))


def test_arithmetic_on_pairs() -> None:
    x = np.random.default_rng(7).normal(size=(64, 3, 2)).astype(np.float32)
    out = np.zeros((64, 3, 2), np.float32)
    module(KERNELS).launch("pairs", grid=(1,), block=(64,), args=[out, x])
    a, b, c = (x[:, i].astype(np.float16).astype(np.float32) for i in range(3))
    rounded = [(a * b + c), (a * b).astype(np.float16).astype(np.float32) - c]
    for i, expected in enumerate(rounded):
        np.testing.assert_array_equal(out[:, i], expected.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(out[:, 2], np.maximum(x[:, 0], x[:, 1]).astype(ml_dtypes.bfloat16).astype(np.float32))

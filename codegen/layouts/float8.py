"""8-bit floats e4m3 (OCP 8-bit floating point, 2023: bias 7, largest 448, no infinities) with one scale for each row."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.formats import F32
from ferrum.codegen.layouts.quantize import Candidates, least_error

LARGEST = 448.0
_SMALLEST_NORMAL = 2.0**-6
# A scale decides where in a power of two the large weights of a row fall, and so how finely they are stored.
_STRETCH = tuple(2.0 ** (i / 8) for i in range(8))


@cache
def _e4m3() -> Any:
    """The dtype, loaded when it is used: naming the stages needs no more than the runtime's packages."""
    from ml_dtypes import float8_e4m3fn

    return float8_e4m3fn


def round_e4m3(x: F32) -> F32:
    """The nearest e4m3 numbers, ties to even; beyond the largest one, the largest. Twice as fast as there and back by cast."""
    size = np.minimum(np.abs(x), np.float32(LARGEST))
    power = (size.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    # adding 1.5 * 2^20 powers of two leaves a mantissa of three bits
    magic = np.maximum(power, np.float32(_SMALLEST_NORMAL)) * np.float32(1.5 * 2**20)
    return np.copysign((size + magic) - magic, x)


def bits_of(x: F32) -> NDArray[np.uint8]:
    """The bytes of numbers that are e4m3 numbers."""
    return x.astype(_e4m3()).view(np.uint8)


def values_of(bits: NDArray[np.uint8]) -> F32:
    """The numbers that bytes mean."""
    return bits.view(_e4m3()).astype(np.float32)


def quantize_rows(w: F32) -> tuple[NDArray[np.uint8], F32]:
    """Quantize ``w [rows, K]`` to bytes ``[rows, K]`` and scales ``[rows]``: those with the least squared error of a few."""
    smallest = np.abs(w).max(-1, initial=0.0) / np.float32(LARGEST)

    def candidates() -> Candidates:
        for stretch in _STRETCH:
            scale = (smallest * np.float32(stretch)).astype(np.float32)
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale >= np.finfo(np.float32).tiny)
            rounded = round_e4m3(w * inverse[:, None])
            yield np.square(rounded * scale[:, None] - w).sum(-1), (rounded, scale)

    rounded, scale = least_error(candidates())
    return bits_of(rounded), scale

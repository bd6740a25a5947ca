"""Blocks whose codes name points of a codebook (IQ1, IQ2, IQ3): eight or four values at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.expressions.ggml.fields import F32, Bytes, Codes, fields, half, shifted, words
from ferrum.graphs.expressions.ggml.points import codebook

# The eighth sign of seven given ones makes their number even.
_EVEN_SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)


def _points(name: str, index: NDArray[Any]) -> Codes:
    points: Codes = codebook(name)[index]
    return points.reshape(len(index), -1)


def _signed(values: Codes, signs: Bytes) -> Codes:
    """``signs`` ``[blocks, values / 8]``: bit i of a byte is set where value i is negative."""
    return np.where(fields(signs, 0, signs.shape[1], 1, 1) == 1, -values, values)


def _even(numbers: NDArray[np.uint32]) -> Bytes:
    """Signs of the four times seven bits in each number."""
    signs: Bytes = _EVEN_SIGNS[shifted(numbers, [0, 7, 14, 21], 0x7F)]
    return signs


def _stepped(scale: F32, steps: NDArray[Any], factor: float) -> F32:
    return scale * (np.float32(0.5) + steps.astype(np.float32)) * np.float32(factor)


def iq2_xxs(blocks: Bytes) -> Codes:
    pairs = words(blocks, 2, 66, "<u4")
    index = np.ascontiguousarray(pairs[:, 0::2]).view(np.uint8)
    return _signed(_points("iq2_xxs", index), _even(pairs[:, 1::2]))


def iq2_xxs_scales(blocks: Bytes) -> F32:
    return _stepped(half(blocks, 0), words(blocks, 2, 66, "<u4")[:, 1::2] >> np.uint32(28), 0.25)


def iq2_xs(blocks: Bytes) -> Codes:
    both = words(blocks, 2, 66, "<u2")
    return _signed(_points("iq2_xs", both & np.uint16(511)), _EVEN_SIGNS[both >> np.uint16(9)])


def iq2_xs_scales(blocks: Bytes) -> F32:
    return _stepped(half(blocks, 0), fields(blocks, 66, 74, 4, 1), 0.25)


def iq2_s(blocks: Bytes) -> Codes:
    index = blocks[:, 2:34].astype(np.uint16) | fields(blocks, 66, 74, 2, 1).astype(np.uint16) << np.uint16(8)
    return _signed(_points("iq2_s", index), blocks[:, 34:66])


def iq2_s_scales(blocks: Bytes) -> F32:
    return _stepped(half(blocks, 0), fields(blocks, 74, 82, 4, 1), 0.25)


def iq3_xxs(blocks: Bytes) -> Codes:
    return _signed(_points("iq3_xxs", blocks[:, 2:66]), _even(words(blocks, 66, 98, "<u4")))


def iq3_xxs_scales(blocks: Bytes) -> F32:
    return _stepped(half(blocks, 0), words(blocks, 66, 98, "<u4") >> np.uint32(28), 0.5)


def iq3_s(blocks: Bytes) -> Codes:
    index = blocks[:, 2:66].astype(np.uint16) | fields(blocks, 66, 74, 1, 1).astype(np.uint16) << np.uint16(8)
    return _signed(_points("iq3_s", index), blocks[:, 74:106])


def iq3_s_scales(blocks: Bytes) -> F32:
    return half(blocks, 0) * (1 + 2 * fields(blocks, 106, 110, 4, 1)).astype(np.float32)


# IQ1 moves each point by an eighth: codes are eighths, so scales are eight times smaller.


def _moved(points: Codes, down: NDArray[np.bool_], run: int) -> Codes:
    """``down`` ``[blocks, values / run]``: whether those values are an eighth less, or else more."""
    moved: Codes = points * np.int8(8) + np.repeat(np.where(down, np.int8(-1), np.int8(1)), run, axis=1)
    return moved


def iq1_s(blocks: Bytes) -> Codes:
    high = words(blocks, 34, 50, "<u2")
    index = blocks[:, 2:34].astype(np.uint16) | shifted(high, [0, 3, 6, 9], 7) << np.uint16(8)
    return _moved(_points("iq1", index), high >= 0x8000, 32)


def iq1_s_scales(blocks: Bytes) -> F32:
    steps = words(blocks, 34, 50, "<u2") >> np.uint16(12) & np.uint16(7)
    return half(blocks, 0) * (2 * steps + 1).astype(np.float32) * np.float32(0.125)


def iq1_m(blocks: Bytes) -> Codes:
    high = fields(blocks, 32, 48, 4, 1)
    index = blocks[:, :32].astype(np.uint16) | (high & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    return _moved(_points("iq1", index), high >= 8, 8)


def iq1_m_scales(blocks: Bytes) -> F32:
    """The block's float16 lies in the highest four bits of four words, whose others are the groups' scales."""
    parts = words(blocks, 48, 56, "<u2")
    bits = (parts >> np.uint16(12)) << np.array([0, 4, 8, 12], np.uint16)
    whole = np.bitwise_or.reduce(bits, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    return whole * (2 * shifted(parts, [0, 3, 6, 9], 7) + 1).astype(np.float32) * np.float32(0.125)

"""Blocks of 256 values whose groups have scales of few bits (Q2_K … Q6_K)."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.expressions.ggml.fields import F32, Bytes, Codes, fields, half, words
from ferrum.graphs.expressions.ggml.plain import centred

_HIGH = np.uint8(0x30)
_LOW = np.uint8(0x0F)


def q2(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 16, 80, 2, 32), 0)


def q2_scales(blocks: Bytes) -> F32:
    return half(blocks, 80) * (blocks[:, :16] & _LOW).astype(np.float32)


def q2_mins(blocks: Bytes) -> F32:
    return -(half(blocks, 82) * (blocks[:, :16] >> np.uint8(4)).astype(np.float32))


def q3(blocks: Bytes) -> Codes:
    """A bit that is not set takes 4 away."""
    low, high = fields(blocks, 32, 96, 2, 32), fields(blocks, 0, 32, 1, 32)
    return centred(low | high << np.uint8(2), 4)


def q3_scales(blocks: Bytes) -> F32:
    low, high = fields(blocks, 96, 104, 4, 8), fields(blocks, 104, 108, 2, 4)
    return half(blocks, 108) * centred(low | high << np.uint8(4), 32).astype(np.float32)


def _sixes(blocks: Bytes, at: int, shift: int) -> Bytes:
    """Eight numbers of six bits: four lie in the low bits of bytes, four in halves of bytes and the high bits of those."""
    first, rest = blocks[:, at : at + 4], blocks[:, 12:16]
    return np.concatenate([first & np.uint8(0x3F), rest >> np.uint8(shift) & _LOW | first >> np.uint8(2) & _HIGH], axis=1)


def q45_scales(blocks: Bytes) -> Bytes:
    return _sixes(blocks, 4, 0)


def q45_mins(blocks: Bytes) -> Bytes:
    return _sixes(blocks, 8, 4)


def q45_min_steps(blocks: Bytes) -> F32:
    """What the file takes away is added here."""
    return -half(blocks, 2)


def q4(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 16, 144, 4, 32), 0)


def q5(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 48, 176, 4, 32) | fields(blocks, 16, 48, 1, 32) << np.uint8(4), 0)


def q6(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 0, 128, 4, 64) | fields(blocks, 128, 192, 2, 32) << np.uint8(4), 32)


def q6_scales(blocks: Bytes) -> Codes:
    return words(blocks, 192, 208, "i1")

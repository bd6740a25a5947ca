"""Blocks of four-bit codes that stand for the values of a table (IQ4_NL, IQ4_XS, MXFP4, NVFP4)."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.expressions.ggml.fields import F32, Bytes, Codes, fields, half, shifted, words

UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
# float4 (e2m1) times two. Source: OCP Microscaling Formats 1.0.
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def iq4_nl(blocks: Bytes) -> Codes:
    return UNEVEN[fields(blocks, 2, 18, 4, 16)]


def iq4_xs(blocks: Bytes) -> Codes:
    return UNEVEN[fields(blocks, 8, 136, 4, 16)]


def iq4_xs_scales(blocks: Bytes) -> F32:
    high = shifted(words(blocks, 2, 4, "<u2"), list(range(0, 16, 2)), 3).astype(np.uint8)
    whole = fields(blocks, 4, 8, 4, 1) | high << np.uint8(4)
    return half(blocks, 0) * (whole.astype(np.float32) - np.float32(32))


def mxfp4(blocks: Bytes) -> Codes:
    return E2M1[fields(blocks, 1, 17, 4, 16)]


def mxfp4_scales(blocks: Bytes) -> F32:
    """Half of 2 ** (byte - 127); the two smallest are subnormal."""
    byte = blocks[:, :1].astype(np.uint32)
    bits = np.where(byte < 2, np.uint32(0x00200000) << byte, np.maximum(byte, 1) - np.uint32(1) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


def nvfp4(blocks: Bytes) -> Codes:
    return E2M1[fields(blocks, 4, 36, 4, 8)]


def nvfp4_scales(blocks: Bytes) -> F32:
    """Half of an e4m3 number without a sign; what would be NaN is 0."""
    byte = blocks[:, :4]
    power, part = (byte >> np.uint8(3) & np.uint8(15)).astype(np.int32), (byte & np.uint8(7)).astype(np.float32)
    value = np.ldexp(np.where(power == 0, part, part + np.float32(8)), np.maximum(power, 1) - 11)
    return np.where(byte == 0x7F, np.float32(0), value).astype(np.float32)

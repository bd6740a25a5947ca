"""Blocks of 32 values with one scale (Q4_0 … Q8_0, Q1_0) and of 256 with one (Q8_K), and those of three values (TQ1_0, TQ2_0)."""

from __future__ import annotations

import numpy as np

from ferrum.graphs.expressions.ggml.fields import F32, Bytes, Codes, fields, half, words


def first_half(blocks: Bytes) -> F32:
    return half(blocks, 0)


def second_half(blocks: Bytes) -> F32:
    return half(blocks, 2)


def last_half(blocks: Bytes) -> F32:
    return half(blocks, blocks.shape[1] - 2)


def centred(codes: Bytes, zero: int) -> Codes:
    """``codes`` below 128, moved so that ``zero`` is 0."""
    return codes.view(np.int8) - np.int8(zero)


def q4_0(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 2, 18, 4, 16), 8)


def q4_1(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 4, 20, 4, 16), 0)


def _five_bits(blocks: Bytes, at: int) -> Bytes:
    """Four bytes of highest bits, then the others as in Q4_0."""
    return fields(blocks, at + 4, at + 20, 4, 16) | fields(blocks, at, at + 4, 1, 1) << np.uint8(4)


def q5_0(blocks: Bytes) -> Codes:
    return centred(_five_bits(blocks, 2), 16)


def q5_1(blocks: Bytes) -> Codes:
    return centred(_five_bits(blocks, 4), 0)


def q8_0(blocks: Bytes) -> Codes:
    return words(blocks, 2, 34, "i1")


def q1_0(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 2, 18, 1, 1) << np.uint8(1), 1)


def q8_k(blocks: Bytes) -> Codes:
    return words(blocks, 4, 260, "i1")


def q8_k_scales(blocks: Bytes) -> F32:
    return words(blocks, 0, 4, "<f4")


def tq2_0(blocks: Bytes) -> Codes:
    return centred(fields(blocks, 0, 64, 2, 32), 1)


def tq1_0(blocks: Bytes) -> Codes:
    """Digits of base 3, the highest first: a byte is what ``digits * 256 / 243`` is rounded up to, so that products overflow."""

    def digits(start: int, stop: int, count: int) -> Bytes:
        powers = np.array([3**i for i in range(count)], np.uint8)[:, None]
        return (blocks[:, start:stop].reshape(len(blocks), -1, 1, stop - start) * powers).reshape(len(blocks), -1)

    moved = np.concatenate([digits(0, 32, 5), digits(32, 48, 5), digits(48, 52, 4)], axis=1)
    return centred((moved.astype(np.uint16) * 3 >> 8).astype(np.uint8), 1)

"""Normal numbers as Q4_K, Q5_K and Q6_K, which the format's own package reads and does not write.

Steps are found as ours are; the bytes are those of ggml's ``ggml-common.h``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts import parse_format
from ferrum.codegen.layouts.quantize import quantize_steps

K_KINDS = {"q4_k": "int4k-g32", "q5_k": "int5k-g32", "q6_k": "int6k-g16"}
Bytes = NDArray[np.uint8]


def k_blocks(kind: str, values: NDArray[np.float32]) -> Bytes:
    """``[rows, K]`` as the bytes of blocks ``[rows, bytes]``; K is a multiple of 256."""
    codes, numbers, steps = quantize_steps(values, parse_format(K_KINDS[kind]), 256)
    q, numbers = codes.reshape(-1, 256), numbers.reshape(-1, 16)
    step, least = steps[..., :1].reshape(-1, 1).view(np.uint8), (-steps[..., -1:]).reshape(-1, 1).view(np.uint8)
    if kind == "q6_k":
        quarters = q.reshape(-1, 2, 4, 32)
        low = quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4
        parts: list[NDArray[Any]] = [low.reshape(-1, 128), _bits(quarters >> 4, 2).reshape(-1, 64), numbers, step]
        return np.concatenate(parts, axis=1).reshape(len(values), -1)
    pairs = q.reshape(-1, 4, 2, 32) & 15
    low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    high = [_bits(q.reshape(-1, 1, 8, 32) >> 4, 1).reshape(-1, 32)] if kind == "q5_k" else []
    return np.concatenate([step, least, _sixes(numbers), *high, low], axis=1).reshape(len(values), -1)


def _bits(high: Bytes, width: int) -> Bytes:
    """``[blocks, parts, runs, 32]``: each run's bits above those of the one before it."""
    shifts = np.arange(high.shape[2], dtype=np.uint8)[:, None] * np.uint8(width)
    return np.bitwise_or.reduce(high << shifts, axis=2)


def _sixes(numbers: Bytes) -> Bytes:
    """Eight scales and eight least values in twelve bytes."""
    scales, mins = numbers[:, :8], numbers[:, 8:]
    first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, mins)]
    return np.concatenate([*first, scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4], axis=1)

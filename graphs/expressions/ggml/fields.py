"""Parts of a block: floats and small numbers within its bytes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Codes: TypeAlias = NDArray[np.int8]
F32: TypeAlias = NDArray[np.float32]


def words(blocks: Bytes, start: int, stop: int, dtype: str) -> NDArray[Any]:
    """Bytes ``start:stop`` as little-endian numbers."""
    return np.ascontiguousarray(blocks[:, start:stop]).view(dtype)


def half(blocks: Bytes, at: int) -> F32:
    """The float16 at a byte, ``[blocks, 1]``."""
    return words(blocks, at, at + 2, "<f2").astype(np.float32)


def fields(blocks: Bytes, start: int, stop: int, width: int, run: int) -> Bytes:
    """Numbers of ``width`` bits: the lowest of each of ``run`` neighbouring bytes, the next higher ones, …; then the next run."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    runs = blocks[:, start:stop].reshape(len(blocks), -1, 1, run)
    return (runs >> shifts & np.uint8((1 << width) - 1)).reshape(len(blocks), -1)


def shifted(numbers: NDArray[Any], shifts: list[int], mask: int) -> NDArray[Any]:
    """Each of ``[blocks, n]`` as several numbers, one for each shift: ``[blocks, n * len(shifts)]``."""
    parts: NDArray[Any] = numbers[:, :, None] >> np.array(shifts, numbers.dtype) & numbers.dtype.type(mask)
    return parts.reshape(len(numbers), -1)

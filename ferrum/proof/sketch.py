"""Sketches of values: a few numbers that tell how far two arrays are apart, whatever the arrays are.

A sketch of an array ``x [tokens, width]`` is its L2 norm and ``PROJECTIONS`` sums ``s_j = sum_e sign_j(e) * x_e`` over its
elements in C order, with signs that a hash of the element's index gives. For two arrays the root mean square of the
differences of their sums estimates the L2 norm of their difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sketch(value: NDArray[Any], first: int = 0) -> NDArray[np.float64]:
    """The squared norm, then the sums, of ``value``, whose first element has the index ``first``; those of parts add up."""
    flat = np.asarray(value, np.float64).reshape(-1)
    sums = 2 * (flat @ _signs(first, flat.size)) - flat.sum()
    return np.concatenate([[flat @ flat], sums])


def _signs(first: int, count: int) -> NDArray[np.float64]:
    """1 for plus and 0 for minus ``[count, PROJECTIONS]``: the low bits of splitmix64 of each index, highest bit first."""
    x = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.unpackbits((x ^ (x >> np.uint64(31))).astype(np.uint8)[:, None], axis=1).astype(np.float64)


def stored(found: NDArray[np.float64]) -> list[float]:
    """A sketch as it is written: seven digits of each number, as many as a float32 has."""
    return [float(f"{x:.7g}") for x in (math.sqrt(found[0]), *found[1:])]


def deviation(found: NDArray[np.float64], reference: Sequence[float]) -> float:
    """The norm of the difference over the reference's norm, as the sketches tell; infinite where a value is not finite."""
    difference = float(np.sqrt(np.mean((found[1:] - np.array(reference[1:])) ** 2)))
    return difference / (reference[0] or 1.0) if np.isfinite(found).all() and math.isfinite(difference) else math.inf

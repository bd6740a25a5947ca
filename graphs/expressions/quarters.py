"""Factors that are powers of the fourth root of two, each a letter: ``a`` to ``z`` are 1 to 26 quarters of an octave up, ``A`` to
``Z`` as many down, ``0`` is 1.

A factor and its inverse are so written without numbers of which one is the rounded reciprocal of the other, and four of them in a
row are exactly a doubling.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MOST = 26
LETTERS = "".join(chr(ord("Z") - n) for n in range(MOST)) + "0" + "".join(chr(ord("a") + n) for n in range(MOST))
# 2 ** (n / 4) as float32
_ROOTS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429], np.float32)
_FACTORS = np.ldexp(_ROOTS[np.arange(-MOST, MOST + 1) % 4], np.arange(-MOST, MOST + 1) // 4).astype(np.float32)
_PLACES = np.zeros(128, np.int64)
_PLACES[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))


def letters_of(quarters: Iterable[int]) -> str:
    """Whole numbers from ``-MOST`` to ``MOST`` as letters."""
    return "".join(LETTERS[MOST + n] for n in quarters)


@lru_cache(256)
def factors_of(letters: str) -> NDArray[np.float32]:
    """The factors that letters mean."""
    found: NDArray[np.float32] = _FACTORS[_PLACES[np.frombuffer(letters.encode("ascii"), np.uint8)]]
    found.flags.writeable = False
    return found

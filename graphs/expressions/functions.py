"""Functions of single numbers that expressions apply, those that read small floats by their bits among them.

e4m3, e5m2: OCP 8-bit floating point (2023); e2m1, e8m0: OCP microscaling formats (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Function:
    """``apply`` of values and a constant, which some have no use for; the dtypes that it takes, and the one that it gives."""

    apply: Callable[[Array, float], Array]
    takes: tuple[str, ...] = ("f32",)
    gives: str = "f32"


def _e4m3() -> Array:
    """What each byte means: bias 7, no infinities, one NaN of each sign."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _e4m3()
_TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
_E8M0 = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


def _halves(x: Array, _: float) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


# ``f16`` is of numbers that float16 holds. Of e2m1 twice the values, which are whole numbers.
FUNCTIONS: Mapping[str, Function] = {
    "add": Function(lambda x, value: x + x.dtype.type(value)),
    "mul": Function(lambda x, value: x * x.dtype.type(value)),
    "div": Function(lambda x, value: x / x.dtype.type(value)),
    "exp": Function(lambda x, _: np.exp(x)),
    "f16": Function(_halves, gives="f16"),
    "e4m3": Function(lambda x, _: _E4M3[x], ("f8e4m3",)),
    "e5m2": Function(lambda x, _: (x.astype(np.uint16) << 8).view(np.float16).astype(np.float32), ("f8e5m2",)),
    "e8m0": Function(lambda x, _: _E8M0[x], ("u8", "f8e8m0")),
    "e2m1": Function(lambda x, _: _TWICE_E2M1[x], ("u8",), "i8"),
}

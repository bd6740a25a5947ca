"""Small floats by their bits, beside another package."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ferrum.graphs.expressions.functions import FUNCTIONS

FLOATS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e8m0": ml_dtypes.float8_e8m0fnu}


@pytest.mark.parametrize(("function", "dtype"), FLOATS.items())
def test_small_floats_are_read_by_their_bits(function: str, dtype: Any) -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(FUNCTIONS[function].apply(codes, 0.0), codes.view(dtype).astype(np.float32))


def test_twice_a_number_of_four_bits_is_whole() -> None:
    codes = np.arange(16, dtype=np.uint8)
    wanted = 2 * codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(FUNCTIONS["e2m1"].apply(codes, 0.0), wanted)

"""The arrays of a step (``ferrum/pack/step.py``) as values of a graph."""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.graphs.dims import Dim, add
from ferrum.graphs.ir import Shape, Value
from ferrum.pack.step import StepArray

DTYPES: Mapping[str, str] = {"int32": "i32", "uint32": "u32", "float32": "f32", "uint64": "u64"}


def step_value(array: StepArray, vocab_size: int = 0) -> Value:
    """``array`` as a value: its rows are symbolic, but for the words of a mask, whose number follows from ``vocab_size``."""
    leading: list[Dim] = [-(-vocab_size // 32) if rows == "mask_words" else str(rows) for rows in array.shape]
    if array.plus_one:
        leading[-1] = add(leading[-1], 1)
    shape: Shape = (*leading, array.width) if array.width > 1 else tuple(leading)
    return Value(array.name, DTYPES[array.dtype], shape)

"""A map alone on random data, beside its region in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.cases import Case
from ferrum.codegen.kernels.elements import c_type
from ferrum.codegen.kernels.map.body import Body, Operand, Part
from ferrum.codegen.kernels.trials import Lies, draw, floats_case, put, rows_of
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.graphs.expressions.evaluate import Arrays
from ferrum.graphs.interpret import SourceWeights
from ferrum.graphs.numpy_ops import KERNELS
from ferrum.graphs.numpy_region import run_region
from ferrum.graphs.numpy_run import KvState, Run, Sequences

_NUMBERS = 8  # integers of a trial are below


def trial(body: Body, k: int, act: ActFormat, random: np.random.Generator, rows: int) -> Case:
    arrays = draw(random, [lies(operand, part) for part in body.parts for operand in part.operands], rows)
    rough, wanted = (reference(body, k, arrays, rows, dtype) for dtype in (np.float32, np.float64))
    return rows_of(arrays, rough) if rough.dtype.kind == "i" else floats_case(arrays, wanted, rough, act, rows)


def lies(operand: Operand, part: Part) -> Lies:
    kind = "f32" if operand.stored == "float" else "i32"
    high = 2 if operand.dtype == "bool" else _NUMBERS
    return Lies(operand.arg, kind, operand.row, operand.offset, part.dims, operand.strides, 0, high)


def reference(body: Body, k: int, arrays: dict[str, NDArray[Any]], rows: int, dtype: Any) -> NDArray[Any]:
    """Rows ``[rows, k]`` of what the parts write, computed in ``dtype``; integers as int32."""
    out = np.zeros((rows, k), dtype if body.parts[0].dtype == "f32" else np.int32)
    for part in body.parts:
        with np.errstate(all="ignore"):
            put(rows, k, part.dims, part.strides, part.offset, out, _values(part, arrays, rows, dtype))
    return out


def _values(part: Part, arrays: dict[str, NDArray[Any]], rows: int, dtype: Any) -> NDArray[Any]:
    """What a part writes ``[rows, *dims]``, or what broadcasts to that."""
    seen = [_typed(lies(operand, part).seen(arrays[operand.arg], rows), operand.dtype, dtype) for operand in part.operands]
    if part.region is not None:
        run = Run(SourceWeights(Arrays({})), dtype, {}, {}, {}, {}, KvState(), Sequences())
        (value,) = run_region(run, part.region, seen, KERNELS)
        return value
    if seen:
        return seen[0]
    first, step = part.index if part.dims else (part.index[0], 0.0)
    along = np.arange(part.dims[0] if part.dims else 1).reshape(-1, *(1 for _ in part.dims[1:]))
    value = first + step * along
    return value.astype(np.int32) if c_type(part.dtype) == "int" else value.astype(dtype)


def _typed(array: NDArray[Any], dtype: str, floats: Any) -> NDArray[Any]:
    """What is in memory as what it means: see ``Operand.element``."""
    if dtype == "bool":
        return array != 0
    return array.astype(floats if dtype == "f32" else np.int32)

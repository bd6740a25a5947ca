"""How weights lie in a pack: number formats, quantizers, and physical layouts that every kernel of a target reads.

A layout is ``{name, nbytes, encode, decode}`` (``base.Layout``); ``parse_layout`` makes it again from the names in a pack.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.base import Layout, MatrixLayout, Parallel
from ferrum.codegen.layouts.formats import Array, Format, fit_group, parse_format, to_bf16, to_f32, unknown
from ferrum.codegen.layouts.plain import PlainLayout
from ferrum.codegen.layouts.rows import TILE_ROWS, RowLayout
from ferrum.codegen.layouts.stacked import StackedLayout
from ferrum.codegen.layouts.tiled import TiledLayout
from ferrum.graphs.expressions.evaluate import in_memory

__all__ = [
    "TILE_ROWS", "Array", "Format", "Layout", "MatrixLayout", "Parallel", "PlainLayout", "RowLayout", "StackedLayout",
    "TiledLayout", "fit_group", "parse_format", "parse_layout", "stored", "to_bf16", "to_f32",
]  # fmt: skip

_NAME = re.compile(r"unit([1-9]\d{0,3})x([1-9]\d{0,3})h([1-9])|rows16h([1-9])")


def parse_layout(layout: str, fmt: str, shape: tuple[int, ...]) -> Layout:
    """The layout of a parameter from its name, number format and logical shape. Raises FerrumError for names that are none."""
    if layout == PlainLayout.name:
        return PlainLayout(shape)
    match = _NAME.fullmatch(layout)
    if match is None or len(shape) not in (2, 3):
        raise unknown(f"layout of {len(shape)} axes", layout)
    lanes, tiles, halves, of_rows = (int(group or 0) for group in match.groups())
    n, k, number = shape[-2], shape[-1], parse_format(fmt)
    matrix = RowLayout(n, k, number, of_rows) if of_rows else TiledLayout(n, k, number, lanes, tiles, halves)
    return matrix if len(shape) == 2 else StackedLayout(shape[0], matrix)


def stored(values: Array, layout: Layout) -> NDArray[np.uint8]:
    """The bytes of floats in memory in a layout."""
    pieces = layout.encode(in_memory(values), map)
    return np.concatenate([np.ascontiguousarray(piece).reshape(-1).view(np.uint8) for piece in pieces])

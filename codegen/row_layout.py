"""The weights' physical layout on GPUs: rows, with the bytes that one lane needs side by side.

A matrix ``[N, K]`` is stored row by row. Four neighbouring lanes of a warp (or simdgroup) share a row: each reads 16 bytes
of a *chunk* at once, and what it read serves two or more matrix instructions. Inside a chunk, lane ``c`` of the four holds

===========  =========  ================================================================================
format       K a chunk  lane c's 16 bytes
===========  =========  ================================================================================
f32          16         4 values from k = 4c
bf16         32         8 values from k = 8c
int8-gG      64         8 bytes from k = 8c, then 8 bytes from k = 32 + 8c; value = scale * (q - 128)
fp8          64         as int8; value = scale of the row * e4m3
int4-gG      128        4 words; word j holds k = 32j + 8c … +7 as nibbles 0 2 4 6 1 3 5 7 from the lowest,
                        so that word >> 4i & 0x000f000f is the pair k+2i, k+2i+1; value = scale * (q - 8)
int4a-gG     128        as int4; value = scale * (q - zero)
===========  =========  ================================================================================

Scales (f16 ``[N][K/G]``; of fp8 f32 ``[N]``) follow the rows, zero points (u8 ``[N][K/G]``) the scales. K is padded to whole
chunks and groups, N to 16 rows. ``halves`` 2 interleaves 8 rows of the first half (gate) with the same 8 of the second (up), so
that the 16 rows of one matrix tile hold pairs that are multiplied with each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen import float8
from ferrum.codegen.layouts import (
    Array,
    Format,
    TiledLayout,
    decode_rows,
    encode_units,
    gather_units,
    parse_format,
    parse_tiled,
    quantize_groups,
    to_bf16,
    to_f32,
)

TILE_ROWS = 16
HALF_TILE = 8
_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class RowLayout:
    """``[n, k]`` as rows of chunks."""

    n: int
    k: int
    format: Format
    halves: int = 1

    @property
    def name(self) -> str:
        return f"rows16h{self.halves}"

    @property
    def unit_rows(self) -> int:
        """Rows that are encoded together."""
        return TILE_ROWS

    @property
    def units(self) -> int:
        return self.tiles

    @property
    def padded_n(self) -> int:
        per_half = TILE_ROWS // self.halves
        return -(-(self.n // self.halves) // per_half) * per_half * self.halves

    @property
    def chunk_k(self) -> int:
        """K values of one chunk: 64 bytes of a row."""
        return 64 * 8 // self.format.bits

    @property
    def padded_k(self) -> int:
        step = max(self.chunk_k, self.format.group)
        return -(-self.k // step) * step

    @property
    def chunks(self) -> int:
        return self.padded_k // self.chunk_k

    @property
    def row_bytes(self) -> int:
        return self.padded_k * self.format.bits // 8

    @property
    def tiles(self) -> int:
        return self.padded_n // TILE_ROWS

    @property
    def tile_bytes(self) -> int:
        return TILE_ROWS * self.row_bytes

    @property
    def groups(self) -> int:
        return self.padded_k // self.format.group if self.format.group else 0

    @property
    def scale_offset(self) -> int:
        """Where the scales start; they follow the rows, which are whole multiples of 64 bytes."""
        return self.padded_n * self.row_bytes

    @property
    def zero_offset(self) -> int:
        return -(-(self.scale_offset + self.padded_n * self.groups * 2) // 64) * 64

    @property
    def nbytes(self) -> int:
        if not self.groups:
            return self.scale_offset + (4 * self.padded_n if self.format.per_row else 0)
        if self.format.kind != "int4a":
            return self.scale_offset + self.padded_n * self.groups * 2
        return self.zero_offset + self.padded_n * self.groups

    def stored_row(self, ids: NDArray[np.integer]) -> NDArray[np.integer]:
        """Stored rows of the logical rows ``ids``."""
        ids = np.asarray(ids, np.int64)
        if self.halves == 1:
            return ids
        half, row = np.divmod(ids, self.n // 2)
        return row // HALF_TILE * TILE_ROWS + half * HALF_TILE + row % HALF_TILE


def parse_rows(layout: str, fmt: str, shape: tuple[int, int]) -> RowLayout:
    """Rebuild a layout from its name and the logical shape, as they are stored in a pack."""
    match = re.fullmatch(r"rows16h(\d)", layout)
    assert match, layout
    return RowLayout(shape[0], shape[1], parse_format(fmt), int(match[1]))


def gather_rows(matrix: Array, layout: RowLayout, first: int, count: int) -> NDArray[np.float32]:
    """Stored rows of tiles ``first … first+count`` as float32 ``[count*16, padded_k]``; padding is zero."""
    out = np.zeros((count * TILE_ROWS, layout.padded_k), np.float32)
    if layout.halves == 1:
        real = to_f32(matrix[first * TILE_ROWS : min((first + count) * TILE_ROWS, layout.n)])
        out[: len(real), : layout.k] = real
        return out
    run, per_half = TILE_ROWS // layout.halves, layout.n // layout.halves
    for piece in range(count * layout.halves):
        tile, half = divmod(piece, layout.halves)
        start = (first + tile) * run
        rows = max(0, min(run, per_half - start))
        if rows:
            row = half * per_half + start
            out[piece * run : piece * run + rows, : layout.k] = to_f32(matrix[row : row + rows])
    return out


def encode_rows(rows: NDArray[np.float32], layout: RowLayout) -> tuple[Array, Array | None, Array | None]:
    """Encode whole tiles as ``gather_rows`` gives them → row bytes, scales ``[rows, K/G]`` or ``[rows]``, zero points."""
    fmt, count, k = layout.format, rows.shape[0], layout.padded_k
    if fmt.kind == "f32":
        return np.ascontiguousarray(rows), None, None
    if fmt.kind == "bf16":
        return to_bf16(rows), None, None
    if fmt.per_row:
        bits, row_scale = float8.quantize_rows(rows)
        return _permute(bits, fmt, count, k), row_scale, None
    q, scale, zero = quantize_groups(rows, fmt)
    return _permute(q, fmt, count, k), scale, zero


def _permute(q: NDArray[np.uint8], fmt: Format, count: int, k: int) -> NDArray[np.uint8]:
    if fmt.bits == 8:
        return np.ascontiguousarray(q.reshape(count, k // 64, 2, 4, 8).transpose(0, 1, 3, 2, 4)).reshape(count, k)
    eights = q.reshape(count, k // 128, 4, 4, 8).transpose(0, 1, 3, 2, 4)  # row, chunk, lane c, word j, value
    nibbles = eights[..., _NIBBLES]
    return np.ascontiguousarray(nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4))).reshape(count, k // 2)


def _restore(packed: NDArray[np.uint8], layout: RowLayout) -> NDArray[np.uint8]:
    count, k = len(packed), layout.padded_k
    if layout.format.bits == 8:
        return packed.reshape(count, k // 64, 4, 2, 8).transpose(0, 1, 3, 2, 4).reshape(count, k)
    pairs = packed.reshape(count, k // 128, 4, 4, 4)
    nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(count, k // 128, 4, 4, 8)
    values = np.empty_like(nibbles)
    values[..., _NIBBLES] = nibbles
    return values.transpose(0, 1, 3, 2, 4).reshape(count, k)


def decode_stored(data: memoryview | bytes, layout: RowLayout, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """Chosen rows of the stored matrix as float32 ``[len(ids), k]``."""
    raw, row, fmt = np.frombuffer(data, np.uint8), layout.stored_row(ids), layout.format
    packed = raw[: layout.padded_n * layout.row_bytes].reshape(layout.padded_n, layout.row_bytes)[row]
    if fmt.kind == "f32":
        return np.ascontiguousarray(packed.view(np.float32)[:, : layout.k])
    if fmt.kind == "bf16":
        return to_f32(np.ascontiguousarray(packed.view(np.uint16)[:, : layout.k]))
    if fmt.per_row:
        scales = raw[layout.scale_offset : layout.nbytes].view(np.float32)[row]
        return np.ascontiguousarray((float8.values_of(_restore(packed, layout)) * scales[:, None])[:, : layout.k])
    total = layout.padded_n * layout.groups
    stored = raw[layout.scale_offset : layout.scale_offset + 2 * total].view(np.float16)
    scale = stored.reshape(layout.padded_n, layout.groups)[row].astype(np.float32)
    zero = np.full(scale.shape, fmt.zero, np.float32)
    if fmt.kind == "int4a":
        zero = raw[layout.zero_offset : layout.zero_offset + total].reshape(-1, layout.groups)[row].astype(np.float32)
    q = _restore(packed, layout).reshape(len(row), layout.groups, fmt.group).astype(np.float32)
    q -= zero[..., None]
    q *= scale[..., None]
    return np.ascontiguousarray(q.reshape(len(row), layout.padded_k)[:, : layout.k])


Layout = TiledLayout | RowLayout


def parse_layout(layout: str, fmt: str, shape: tuple[int, int]) -> Layout:
    """The layout of any matrix in a pack, from its name."""
    return parse_tiled(layout, fmt, shape) if layout.startswith("unit") else parse_rows(layout, fmt, shape)


def gather(matrix: Array, layout: Layout, first: int, count: int) -> NDArray[np.float32]:
    """Source rows of whole units in stored order, as ``encode`` takes them."""
    return (
        gather_units(matrix, layout, first, count)
        if isinstance(layout, TiledLayout)
        else gather_rows(matrix, layout, first, count)
    )


def encode(rows: NDArray[np.float32], layout: Layout) -> tuple[Array, Array | None, Array | None]:
    """Bytes of the units; scales and zero points where they follow all units."""
    return (encode_units(rows, layout), None, None) if isinstance(layout, TiledLayout) else encode_rows(rows, layout)


def decode_any(data: memoryview | bytes, layout: Layout, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """Chosen rows of the stored matrix as float32."""
    return decode_rows(data, layout, ids) if isinstance(layout, TiledLayout) else decode_stored(data, layout, ids)

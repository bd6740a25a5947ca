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
int4s-gG     128        as int4
int4a-gG     128        as int4; value = scale * (q - zero)
===========  =========  ================================================================================

Scales (f16 ``[N][K/G]``; of fp8 f32 ``[N]``) follow the rows, zero points (u8 ``[N][K/G]``) the scales. K is padded to whole
chunks and groups, N to 16 rows. ``halves`` 2 interleaves 8 rows of the first half (gate) with the same 8 of the second (up), so
that the 16 rows of one matrix tile hold pairs that are multiplied with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts import float8
from ferrum.codegen.layouts.base import Ids, MatrixLayout, Parallel
from ferrum.codegen.layouts.formats import F32, Array, Format, to_bf16, to_f32
from ferrum.graphs.expressions.evaluate import Pieces

TILE_ROWS = 16
_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class RowLayout(MatrixLayout):
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
        return TILE_ROWS

    @property
    def tile_rows(self) -> int:
        return TILE_ROWS // self.halves

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
        return self.units

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
        if not self.format.zeros:
            return self.scale_offset + self.padded_n * self.groups * 2
        return self.zero_offset + self.padded_n * self.groups

    def encode(self, source: Pieces, parallel: Parallel) -> Iterator[Array]:
        behind: list[tuple[Array | None, Array | None]] = []
        for data, scale, zero in self.by_units(lambda first, count: self._encode_tiles(source, first, count), parallel):
            yield data
            behind.append((scale, zero))
        yield from (scale for scale, _ in behind if scale is not None)
        if self.format.zeros:
            yield np.zeros(self.zero_offset - self.scale_offset - 2 * self.padded_n * self.groups, np.uint8)
            yield from (zero for _, zero in behind if zero is not None)

    def _encode_tiles(self, source: Pieces, first: int, count: int) -> tuple[Array, Array | None, Array | None]:
        """Row bytes, scales ``[rows, K/G]`` or ``[rows]``, zero points of whole tiles."""
        fmt = self.format
        if fmt.group:
            q, scale, zero = self.quantized(source, first, count)
            return _permute(q, fmt), scale, zero
        if fmt.holds(source.blocked):
            part = self._parts(source, first, count)
            bits = float8.bits_of(part("codes", self.padded_k, np.float32))
            return _permute(bits, fmt), part("scales", 1, np.float32)[:, 0], None
        rows = self.floats(source, first, count)
        if fmt.per_row:
            bits, row_scale = float8.quantize_rows(rows)
            return _permute(bits, fmt), row_scale, None
        return rows if fmt.kind == "f32" else to_bf16(rows), None, None

    def decode(self, data: memoryview | bytes, ids: Ids | None = None) -> F32:
        raw, row, fmt = np.frombuffer(data, np.uint8), self.stored_row(np.arange(self.n) if ids is None else ids), self.format
        packed = raw[: self.padded_n * self.row_bytes].reshape(self.padded_n, self.row_bytes)[row]
        if fmt.kind == "f32":
            return np.ascontiguousarray(packed.view(np.float32)[:, : self.k])
        if fmt.kind == "bf16":
            return to_f32(np.ascontiguousarray(packed.view(np.uint16)[:, : self.k]))
        if fmt.per_row:
            scales = raw[self.scale_offset : self.nbytes].view(np.float32)[row]
            return np.ascontiguousarray((float8.values_of(_restore(packed, self)) * scales[:, None])[:, : self.k])
        total = self.padded_n * self.groups
        stored = raw[self.scale_offset : self.scale_offset + 2 * total].view(np.float16)
        scale = stored.reshape(self.padded_n, self.groups)[row].astype(np.float32)
        zero = np.full(scale.shape, fmt.zero, np.float32)
        if fmt.zeros:
            zero = raw[self.zero_offset : self.zero_offset + total].reshape(-1, self.groups)[row].astype(np.float32)
        q = _restore(packed, self).reshape(len(row), self.groups, fmt.group).astype(np.float32)
        q -= zero[..., None]
        q *= scale[..., None]
        return np.ascontiguousarray(q.reshape(len(row), self.padded_k)[:, : self.k])


def _permute(q: NDArray[np.uint8], fmt: Format) -> NDArray[np.uint8]:
    count, k = q.shape
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

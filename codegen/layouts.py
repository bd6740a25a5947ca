"""Number formats and physical layouts of weights: encoding, decoding, sizes.

A matrix ``[N, K]`` is stored as tiles of ``lanes`` rows. Inside a tile, ``pack`` neighbouring K values of one row sit
side by side in one 32-bit lane, so that a vector load gives ``lanes`` rows and one broadcast of the activation serves
them all; GEMV, small batches and prefill read the same bytes. Rows are padded with zeros to a whole unit of
``unit_tiles`` tiles and K to a whole quantization group.

===========  ======================  ============================================================
format       weights of a tile       scales
===========  ======================  ============================================================
f32          [K][lanes]              -
bf16         [K/2][lanes][2]         -
int8-gG      [K/4][lanes][4] u8      f16 [K/G][lanes]; value = scale * (q - 128)
int4-gG      [K/8][lanes][4] u8,     f16 [K/G][lanes]; value = scale * (q - 8);
             low nibbles hold the    low nibbles are k..k+3, high ones k+4..k+7
             first four K
int4a-gG     as int4                 and u8 zero points [K/G][lanes]; value = scale * (q - zero)
===========  ======================  ============================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
_FORMAT = re.compile(r"(f32|bf16|(?:int8|int4|int4a)-g(\d+))")
# Candidate shrink factors of a group's scale: clipping the largest weights a little often lowers the squared error.
_SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77, 0.72)


@dataclass(frozen=True)
class Format:
    """A logical number format: ``kind`` f32, bf16, int8, int4 or int4a; ``group`` K values share a scale (0: none)."""

    kind: str
    group: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-g{self.group}" if self.group else self.kind

    @property
    def bits(self) -> int:
        return {"f32": 32, "bf16": 16, "int8": 8, "int4": 4, "int4a": 4}[self.kind]

    @property
    def zero(self) -> int:
        """The stored value that means 0 (symmetric integer formats)."""
        return {"int8": 128, "int4": 8}.get(self.kind, 0)


def parse_format(name: str) -> Format:
    match = _FORMAT.fullmatch(name)
    assert match, name
    return Format(name.split("-")[0], int(match.group(2) or 0))


def fit_group(group: int, k: int) -> int:
    """The largest of group, group/2 … 32 that divides ``k``; 32 when none does (K is then padded)."""
    while group > 32 and k % group:
        group //= 2
    return group


@dataclass(frozen=True)
class TiledLayout:
    """``[n, k]`` in tiles. ``halves`` 2 alternates tiles of the first and second half of the rows (gate and up)."""

    n: int
    k: int
    format: Format
    lanes: int
    unit_tiles: int
    halves: int = 1

    @property
    def name(self) -> str:
        return f"tile{self.lanes}u{self.unit_tiles}h{self.halves}"

    @property
    def unit_rows(self) -> int:
        return self.lanes * self.unit_tiles

    @property
    def padded_n(self) -> int:
        half_unit = self.unit_rows // self.halves
        return -(-(self.n // self.halves) // half_unit) * half_unit * self.halves

    @property
    def padded_k(self) -> int:
        step = self.format.group or (2 if self.format.kind == "bf16" else 1)
        return -(-self.k // step) * step

    @property
    def tiles(self) -> int:
        return self.padded_n // self.lanes

    @property
    def groups(self) -> int:
        return self.padded_k // self.format.group if self.format.group else 0

    @property
    def tile_bytes(self) -> int:
        return self.lanes * self.padded_k * self.format.bits // 8

    @property
    def scale_offset(self) -> int:
        """Where the scales start; they follow the tiles, 64-byte aligned."""
        return -(-self.tiles * self.tile_bytes // 64) * 64

    @property
    def zero_offset(self) -> int:
        return -(-(self.scale_offset + self.padded_n * self.groups * 2) // 64) * 64

    @property
    def nbytes(self) -> int:
        if not self.groups:
            return self.tiles * self.tile_bytes
        if self.format.kind != "int4a":
            return self.scale_offset + self.padded_n * self.groups * 2
        return self.zero_offset + self.padded_n * self.groups


def parse_tiled(layout: str, fmt: str, shape: tuple[int, int]) -> TiledLayout:
    """Rebuild a layout from its name and the logical shape, as they are stored in a pack."""
    match = re.fullmatch(r"tile(\d+)u(\d+)h(\d)", layout)
    assert match, layout
    lanes, unit, halves = (int(g) for g in match.groups())
    return TiledLayout(shape[0], shape[1], parse_format(fmt), lanes, unit, halves)


def to_f32(array: Array) -> NDArray[np.float32]:
    """float32 values of f32, f16, f64 arrays, or of bfloat16 bits held as uint16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


def to_bf16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """bfloat16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def quantize_groups(
    w: NDArray[np.float32], fmt: Format
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8] | None]:
    """Quantize ``w [rows, K]`` (K a multiple of the group) to ``q [rows, K]``, ``scale [rows, K/G]`` and zero points.

    Scales are those among a few shrunk candidates with the least squared error, as stored (in float16).
    """
    rows, k = w.shape
    groups = w.reshape(rows, k // fmt.group, fmt.group)
    levels = (1 << fmt.bits) - 1
    if fmt.kind == "int4a":
        low, high = np.minimum(groups.min(-1), 0.0), np.maximum(groups.max(-1), 0.0)
        span, half = (high - low) / levels, None
    else:
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
        # int4: the value of largest magnitude goes to -8, so the sign of the scale follows it and no level is wasted
        half = fmt.zero - 1 if fmt.kind == "int8" else -fmt.zero
        low, span = None, (np.abs(extreme) if fmt.kind == "int8" else extreme) / half
    best_error = np.full(span.shape, np.inf, np.float32)
    best_scale = np.zeros(span.shape, np.float16)
    best_zero = np.zeros(span.shape, np.uint8)
    best_q = np.zeros(groups.shape, np.uint8)
    for shrink in _SHRINK if fmt.bits == 4 else (1.0,):
        scale = np.clip(span * shrink, -65504, 65504).astype(np.float16)
        s = scale.astype(np.float32)
        inverse = np.divide(1.0, s, out=np.zeros_like(s), where=s != 0)
        zero = np.clip(np.rint(-low * shrink * inverse), 0, levels) if low is not None else np.float32(fmt.zero)
        z = np.broadcast_to(zero, s.shape)[..., None]
        q = np.clip(np.rint(groups * inverse[..., None] + z), 0, levels)
        error = np.square((q - z) * s[..., None] - groups).sum(-1)
        better = error < best_error
        np.copyto(best_error, error, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_zero, np.broadcast_to(zero, s.shape).astype(np.uint8), where=better)
        np.copyto(best_q, q.astype(np.uint8), where=better[..., None])
    return best_q.reshape(rows, k), best_scale, best_zero if fmt.kind == "int4a" else None


def _source_rows(layout: TiledLayout, tile: int) -> tuple[int, int]:
    """First source row of a tile and how many real rows it has (0 for pure padding)."""
    half, index = tile % layout.halves, tile // layout.halves
    per_half = layout.n // layout.halves
    start = index * layout.lanes
    return half * per_half + start, max(0, min(layout.lanes, per_half - start))


def gather_tiles(matrix: Array, layout: TiledLayout, first: int, count: int) -> NDArray[np.float32]:
    """Rows of tiles ``first … first+count`` in tile order as float32 ``[count*lanes, padded_k]``; padding is zero."""
    out = np.zeros((count * layout.lanes, layout.padded_k), np.float32)
    for i in range(count):
        row, real = _source_rows(layout, first + i)
        if real:
            out[i * layout.lanes : i * layout.lanes + real, : layout.k] = to_f32(matrix[row : row + real])
    return out


def encode_tiles(rows: NDArray[np.float32], layout: TiledLayout) -> tuple[Array, Array | None, Array | None]:
    """Encode whole tiles: ``rows`` as ``gather_tiles`` gives them → tile bytes, scales ``[tiles, K/G, lanes]``, zeros."""
    lanes, k, fmt = layout.lanes, layout.padded_k, layout.format
    tiles = rows.shape[0] // lanes
    if fmt.kind == "f32":
        return np.ascontiguousarray(rows.reshape(tiles, lanes, k).transpose(0, 2, 1)), None, None
    if fmt.kind == "bf16":
        pairs = to_bf16(rows).reshape(tiles, lanes, k // 2, 2)
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)), None, None
    q, scale, zero = quantize_groups(rows, fmt)
    quads: NDArray[np.uint8] = q.reshape(tiles, lanes, k // 4, 4).transpose(0, 2, 1, 3)
    if fmt.bits == 4:
        quads = quads[:, 0::2] | (quads[:, 1::2] << np.uint8(4))

    def by_group(a: Array) -> Array:
        return np.ascontiguousarray(a.reshape(tiles, lanes, layout.groups).transpose(0, 2, 1))

    return np.ascontiguousarray(quads), by_group(scale), None if zero is None else by_group(zero)


def decode(data: memoryview | bytes, layout: TiledLayout) -> NDArray[np.float32]:
    """The float32 ``[n, k]`` that the stored bytes mean; the inverse of encoding for formats without loss."""
    return decode_rows(data, layout, np.arange(layout.n))


def decode_rows(data: memoryview | bytes, layout: TiledLayout, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """Chosen rows of the stored matrix as float32 ``[len(ids), k]``; touches only the tiles that hold them."""
    half, row = np.divmod(np.asarray(ids, np.int64), layout.n // layout.halves)
    tile, lane = row // layout.lanes * layout.halves + half, row % layout.lanes
    raw = np.frombuffer(data, np.uint8)
    out = np.empty((len(tile), layout.k), np.float32)
    needed, where = np.unique(tile, return_inverse=True)
    order = np.argsort(where, kind="stable")
    step = max(1, (1 << 20) // (layout.lanes * layout.padded_k))
    for first in range(0, len(needed), step):
        rows = _decode_tiles(raw, layout, needed[first : first + step])
        low, high = np.searchsorted(where[order], [first, first + step])
        chosen = order[low:high]
        out[chosen] = rows[(where[chosen] - first) * layout.lanes + lane[chosen], : layout.k]
    return out


def _decode_tiles(raw: NDArray[np.uint8], layout: TiledLayout, tiles: NDArray[np.integer]) -> NDArray[np.float32]:
    """Whole tiles as float32 ``[len(tiles) * lanes, padded_k]``."""
    lanes, k, fmt, count = layout.lanes, layout.padded_k, layout.format, len(tiles)
    packed = raw[: layout.tiles * layout.tile_bytes].reshape(layout.tiles, layout.tile_bytes)[tiles]
    if fmt.kind == "f32":
        return packed.view(np.float32).reshape(count, k, lanes).transpose(0, 2, 1).reshape(count * lanes, k)
    if fmt.kind == "bf16":
        pairs = np.ascontiguousarray(packed.view(np.uint32).reshape(count, k // 2, lanes).transpose(0, 2, 1))
        return to_f32(pairs.view(np.uint16).reshape(count * lanes, k))
    words = packed.view(np.uint32).reshape(count, -1, lanes).transpose(0, 2, 1)
    if fmt.bits == 4:
        words = np.stack([words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F], axis=-1)
    q = np.ascontiguousarray(words).view(np.uint8).reshape(count * lanes, layout.groups, fmt.group)
    total = layout.padded_n * layout.groups

    def by_row(values: Array) -> NDArray[np.float32]:
        chosen = values.reshape(layout.tiles, layout.groups, lanes)[tiles]
        return chosen.transpose(0, 2, 1).reshape(count * lanes, layout.groups, 1).astype(np.float32)

    scale = by_row(raw[layout.scale_offset : layout.scale_offset + total * 2].view(np.float16))
    zero = by_row(raw[layout.zero_offset : layout.zero_offset + total]) if fmt.kind == "int4a" else np.float32(fmt.zero)
    values: NDArray[np.float32] = q.astype(np.float32)
    values -= zero
    values *= scale
    return values.reshape(count * lanes, k)

"""Number formats and physical layouts of weights: encoding, decoding, sizes.

A matrix ``[N, K]`` is stored in units of R = ``lanes * unit_tiles`` rows: what a kernel holds in registers at once. A
unit is one run of bytes, read from its start to its end: for each quantization group its scales, then its values.
Neighbouring K values of one row sit side by side in one 32-bit lane, so that a vector load gives ``lanes`` rows and one
broadcast of the activation serves them all; GEMV, small batches and prefill read the same bytes. Rows are padded with
zeros to whole units and K to whole groups.

===========  =============================================================================================
format       a group of G values of R rows (floats have no groups: one run over K)
===========  =============================================================================================
f32          [K][R]
bf16         [K/2][R][2]
int8-gG      f16 scales [R]; u8 [G/4][R][4]; value = scale * (q - 128)
int6-gG      f16 scales [R]; u8 [G/16][3][R][4]; value = scale * (q - 32). Of sixteen K values the first
             word holds the low nibbles of k..k+3 and k+4..k+7, the second those of k+8..k+15, the third
             the upper two bits of all, k..k+3 lowest
int4-gG      i16 scales [R]; u8 [G/8][R][4]; value = step * scale * (q - 8); low nibbles k..k+3, high
             k+4..k+7. A unit begins with f32 steps [R]
int4a-gG     f16 scales [R]; u8 zero points [R]; as int4 with value = scale * (q - zero)
===========  =============================================================================================

The scales of int4 are whole multiples of a step of their row, so that sums over its short groups stay integers: scaled and
added by one instruction, turned to floats once for all groups that share a scale of the activations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
_FORMAT = re.compile(r"(f32|bf16|fp8|(?:int8|int6|int4|int4a)-g(\d+))")
# The largest whole scale: 8 * 127 * 32 fits 16 bits, and eight such sums times this one 32 bits.
_MAX_SCALE = 8191
# Candidate shrink factors of a group's scale: clipping the largest weights a little often lowers the squared error.
_SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77, 0.72)


@dataclass(frozen=True)
class Format:
    """A logical number format: ``kind`` f32, bf16, fp8, int8, int6, int4 or int4a; ``group`` K values share a scale (0: none).

    fp8 is e4m3 with one float32 scale for a whole row.
    """

    kind: str
    group: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-g{self.group}" if self.group else self.kind

    @property
    def bits(self) -> int:
        return {"f32": 32, "bf16": 16, "fp8": 8, "int8": 8, "int6": 6, "int4": 4, "int4a": 4}[self.kind]

    @property
    def per_row(self) -> bool:
        """One scale for a row, applied to its finished sum."""
        return self.kind == "fp8"

    @property
    def whole_scales(self) -> bool:
        """Scales are whole numbers, multiplied by a step of their row at its end."""
        return self.kind == "int4"

    @property
    def zero(self) -> int:
        """The stored value that means 0 (symmetric integer formats)."""
        return {"int8": 128, "int6": 32, "int4": 8}.get(self.kind, 0)


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
    """``[n, k]`` in units of tiles. ``halves`` 2 alternates tiles of the first and second half of the rows (gate and up)."""

    n: int
    k: int
    format: Format
    lanes: int
    unit_tiles: int
    halves: int = 1

    @property
    def name(self) -> str:
        return f"unit{self.lanes}x{self.unit_tiles}h{self.halves}"

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
    def units(self) -> int:
        return self.padded_n // self.unit_rows

    @property
    def groups(self) -> int:
        return self.padded_k // self.format.group if self.format.group else 0

    @property
    def step_bytes(self) -> int:
        """Steps of whole scales at the start of a unit."""
        return 4 * self.unit_rows if self.format.whole_scales else 0

    @property
    def header_bytes(self) -> int:
        """Scales and zero points at the start of a group."""
        return self.unit_rows * ((3 if self.format.kind == "int4a" else 2) if self.format.group else 0)

    @property
    def group_bytes(self) -> int:
        return self.header_bytes + self.unit_rows * self.format.group * self.format.bits // 8

    @property
    def unit_bytes(self) -> int:
        if not self.groups:
            return self.unit_rows * self.padded_k * self.format.bits // 8
        return self.step_bytes + self.groups * self.group_bytes

    @property
    def nbytes(self) -> int:
        return self.units * self.unit_bytes


def parse_tiled(layout: str, fmt: str, shape: tuple[int, int]) -> TiledLayout:
    """Rebuild a layout from its name and the logical shape, as they are stored in a pack."""
    match = re.fullmatch(r"unit(\d+)x(\d+)h(\d)", layout)
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


def gather_units(matrix: Array, layout: TiledLayout, first: int, count: int) -> NDArray[np.float32]:
    """Rows of units ``first … first+count`` in stored order as float32 ``[count * R, padded_k]``; padding is zero."""
    out = np.zeros((count * layout.unit_rows, layout.padded_k), np.float32)
    for i in range(count * layout.unit_tiles):
        row, real = _source_rows(layout, first * layout.unit_tiles + i)
        if real:
            out[i * layout.lanes : i * layout.lanes + real, : layout.k] = to_f32(matrix[row : row + real])
    return out


def encode_units(rows: NDArray[np.float32], layout: TiledLayout) -> Array:
    """Encode whole units: ``rows`` as ``gather_units`` gives them → their bytes as one contiguous array."""
    r, k, fmt = layout.unit_rows, layout.padded_k, layout.format
    units = rows.shape[0] // r
    if fmt.kind == "f32":
        return np.ascontiguousarray(rows.reshape(units, r, k).transpose(0, 2, 1))
    if fmt.kind == "bf16":
        return np.ascontiguousarray(to_bf16(rows).reshape(units, r, k // 2, 2).transpose(0, 2, 1, 3))
    q, scale, zero = quantize_groups(rows, fmt)
    stored = np.empty((units, layout.unit_bytes), np.uint8)
    out = stored[:, layout.step_bytes :].reshape(units, layout.groups, layout.group_bytes)
    scales: Array = scale
    if fmt.whole_scales:
        step, scales = whole_scales(scale)
        stored[:, : layout.step_bytes] = step.reshape(units, r).view(np.uint8)

    def by_group(values: Array) -> NDArray[np.uint8]:
        grouped = np.ascontiguousarray(values.reshape(units, r, layout.groups).transpose(0, 2, 1))
        return grouped.view(np.uint8).reshape(units, layout.groups, -1)

    out[..., : 2 * r] = by_group(scales)
    if zero is not None:
        out[..., 2 * r : 3 * r] = by_group(zero)
    quads = q.reshape(units, r, layout.groups, fmt.group // 4, 4).transpose(0, 2, 3, 1, 4)
    out[..., layout.header_bytes :] = _pack_quads(quads, fmt.bits).reshape(units, layout.groups, -1)
    return stored


def whole_scales(scale: NDArray[np.float16]) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Scales ``[rows, groups]`` as a step for each row and whole multiples of it."""
    wide = scale.astype(np.float32)
    step = np.abs(wide).max(-1) / np.float32(_MAX_SCALE)
    whole = np.rint(np.divide(wide, step[:, None], out=np.zeros_like(wide), where=step[:, None] > 0))
    return step, whole.astype(np.int16)


def _pack_quads(quads: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """``[units, groups, G/4, R, 4]`` values of ``bits`` bits → the bytes of a group's values."""
    if bits == 8:
        return np.ascontiguousarray(quads)
    low = quads & np.uint8(15)
    nibbles: NDArray[np.uint8] = low[:, :, 0::2] | (low[:, :, 1::2] << np.uint8(4))
    if bits == 4:
        return nibbles
    high = quads >> np.uint8(4)
    packed = high[:, :, 0::4].copy()
    for i in (1, 2, 3):
        packed |= high[:, :, i::4] << np.uint8(2 * i)
    return np.stack([nibbles[:, :, 0::2], nibbles[:, :, 1::2], packed], axis=3)


def _unpack_quads(data: NDArray[np.uint8], layout: TiledLayout) -> NDArray[np.uint8]:
    """The inverse: ``[units, groups, bytes]`` → ``[units, groups, G/4, R, 4]``."""
    units, groups, r, bits = len(data), layout.groups, layout.unit_rows, layout.format.bits
    if bits == 8:
        return data.reshape(units, groups, -1, r, 4)
    out = np.empty((units, groups, layout.format.group // 4, r, 4), np.uint8)
    if bits == 4:
        words = data.reshape(units, groups, -1, r, 4)
        out[:, :, 0::2], out[:, :, 1::2] = words & np.uint8(15), words >> np.uint8(4)
        return out
    words = data.reshape(units, groups, -1, 3, r, 4)
    for i in range(4):
        low = words[:, :, :, i // 2] >> np.uint8(4 * (i % 2)) & np.uint8(15)
        out[:, :, i::4] = low | (words[:, :, :, 2] >> np.uint8(2 * i) & np.uint8(3)) << np.uint8(4)
    return out


def decode(data: memoryview | bytes, layout: TiledLayout) -> NDArray[np.float32]:
    """The float32 ``[n, k]`` that the stored bytes mean; the inverse of encoding for formats without loss."""
    return decode_rows(data, layout, np.arange(layout.n))


def decode_rows(data: memoryview | bytes, layout: TiledLayout, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """Chosen rows of the stored matrix as float32 ``[len(ids), k]``; touches only the units that hold them."""
    half, row = np.divmod(np.asarray(ids, np.int64), layout.n // layout.halves)
    tile = row // layout.lanes * layout.halves + half
    unit, inside = tile // layout.unit_tiles, tile % layout.unit_tiles * layout.lanes + row % layout.lanes
    raw = np.frombuffer(data, np.uint8)[: layout.nbytes].reshape(layout.units, layout.unit_bytes)
    out = np.empty((len(unit), layout.k), np.float32)
    needed, where = np.unique(unit, return_inverse=True)
    order = np.argsort(where, kind="stable")
    step = max(1, (1 << 20) // (layout.unit_rows * layout.padded_k))
    for first in range(0, len(needed), step):
        rows = _decode_units(raw[needed[first : first + step]], layout)
        low, high = np.searchsorted(where[order], [first, first + step])
        chosen = order[low:high]
        out[chosen] = rows[(where[chosen] - first) * layout.unit_rows + inside[chosen], : layout.k]
    return out


def _decode_units(packed: NDArray[np.uint8], layout: TiledLayout) -> NDArray[np.float32]:
    """Whole units ``[count, unit_bytes]`` as float32 ``[count * R, padded_k]``."""
    r, k, fmt, count = layout.unit_rows, layout.padded_k, layout.format, len(packed)
    if fmt.kind == "f32":
        return packed.view(np.float32).reshape(count, k, r).transpose(0, 2, 1).reshape(count * r, k)
    if fmt.kind == "bf16":
        pairs = np.ascontiguousarray(packed.view(np.uint32).reshape(count, k // 2, r).transpose(0, 2, 1))
        return to_f32(pairs.view(np.uint16).reshape(count * r, k))
    groups = packed[:, layout.step_bytes :].reshape(count, layout.groups, layout.group_bytes)
    values = _unpack_quads(groups[..., layout.header_bytes :], layout).astype(np.float32)
    stored = np.ascontiguousarray(groups[..., : 2 * r]).view(np.int16 if fmt.whole_scales else np.float16)
    scale = stored.astype(np.float32)
    if fmt.whole_scales:
        scale *= np.ascontiguousarray(packed[:, : layout.step_bytes]).view(np.float32)[:, None]
    if fmt.kind == "int4a":
        values -= groups[..., 2 * r : 3 * r].astype(np.float32)[:, :, None, :, None]
    else:
        values -= np.float32(fmt.zero)
    values *= scale[:, :, None, :, None]
    return values.transpose(0, 3, 1, 2, 4).reshape(count * r, k)

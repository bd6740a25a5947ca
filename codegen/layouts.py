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
int4-gG      u8 scales [R][4], of up to four groups that lie side by side; bf16 steps [R]; then of each of
             these groups u8 [G/8][R][4], low nibbles k..k+3, high k+4..k+7; value = step * scale * (q -
             zero), with the scale in a byte's low half and zero 8, or 7 where the byte's top bit is set
int4a-gG     f16 scales [R]; u8 zero points [R]; u8 values as int4; value = scale * (q - zero)
===========  =============================================================================================

The scales of int4 are whole multiples of a step, so small that a value times its scale is a byte: products and sums are those of
8-bit weights, with one scale for all groups of a *span*. Of the others a span is one group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
_FORMAT = re.compile(r"(f32|bf16|fp8|(?:int8|int6|int4|int4a)-g(\d+))")
# K values of the groups that share a step, where the width allows it.
_SPAN = 128
# What the largest whole scale of a span may be: 8 * 15 is a signed byte, and less rounds others better now and then.
_LARGEST = (15, 14, 13, 12)
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
        """Scales are whole numbers, multiplied by the step of a span."""
        return self.kind == "int4"

    @property
    def zero(self) -> int:
        """The stored value that means 0 (symmetric integer formats)."""
        return {"int8": 128, "int6": 32, "int4": 8}.get(self.kind, 0)

    @property
    def byte_zero(self) -> int:
        """The same of the bytes that are multiplied."""
        return 128 if self.whole_scales else self.zero

    def span(self, k: int) -> int:
        """K values of a row of ``k`` that share a float scale."""
        span, padded = self.group, -(-k // self.group) * self.group
        while self.whole_scales and span < _SPAN and padded % (2 * span) == 0:
            span *= 2
        return span


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
    def span(self) -> int:
        """K values of a row that share a float scale (0: none)."""
        return self.format.span(self.k) if self.format.group else 0

    @property
    def spans(self) -> int:
        return self.padded_k // self.span if self.span else 0

    @property
    def scale_offset(self) -> int:
        """Where the float scales are in a span."""
        return 4 * self.unit_rows if self.format.whole_scales else 0

    @property
    def header_bytes(self) -> int:
        """Scales and zero points at the start of a span."""
        extra = self.unit_rows if self.format.kind == "int4a" else 0
        return self.scale_offset + 2 * self.unit_rows + extra if self.span else 0

    @property
    def span_bytes(self) -> int:
        return self.header_bytes + self.unit_rows * self.span * self.format.bits // 8

    @property
    def unit_bytes(self) -> int:
        return self.spans * self.span_bytes if self.span else self.unit_rows * self.padded_k * self.format.bits // 8

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
    out = np.empty((units, layout.spans, layout.span_bytes), np.uint8)

    def by_span(values: Array) -> NDArray[np.uint8]:
        """``[rows, spans]`` values as the bytes of each span."""
        grouped = np.ascontiguousarray(values.reshape(units, r, layout.spans).transpose(0, 2, 1))
        return grouped.view(np.uint8).reshape(units, layout.spans, -1)

    if fmt.whole_scales:
        q, words, step = quantize_spans(rows, fmt, layout.span)
        out[..., : 4 * r], out[..., 4 * r : 6 * r] = by_span(words), by_span(step)
    else:
        q, scale, zero = quantize_groups(rows, fmt)
        out[..., : 2 * r] = by_span(scale)
        if zero is not None:
            out[..., 2 * r : 3 * r] = by_span(zero)
    quads = q.reshape(units, r, layout.spans, layout.span // 4, 4).transpose(0, 2, 3, 1, 4)
    out[..., layout.header_bytes :] = _pack_quads(quads, fmt.bits).reshape(units, layout.spans, -1)
    return out


def quantize_spans(
    w: NDArray[np.float32], fmt: Format, span: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint16]]:
    """Quantize ``w [rows, K]`` (K a multiple of the span) with whole scales.

    ``q [rows, K]``, for each span ``[rows, K/span]`` a word of four bytes, each a group's scale and which zero it has, and the
    step as bfloat16. The scales that ``quantize_groups`` finds become multiples of the step with the least squared error.
    """
    shape = (len(w), w.shape[1] // span, span // fmt.group)
    wide = quantize_groups(w, fmt)[1].astype(np.float32).reshape(shape)
    groups, magnitude = w.reshape(*shape, fmt.group), np.abs(wide)
    zero = np.where(wide < 0, np.float32(fmt.zero - 1), np.float32(fmt.zero))
    best_error = np.full(shape[:2], np.inf, np.float32)
    best_step = np.zeros(shape[:2], np.uint16)
    best_scale = np.zeros(shape, np.uint8)
    best_q = np.zeros(groups.shape, np.uint8)
    for largest in _LARGEST:
        step = to_bf16(magnitude.max(-1) / np.float32(largest))
        wide_step = to_f32(step)[..., None]
        scale = np.rint(np.divide(magnitude, wide_step, out=np.zeros_like(magnitude), where=wide_step > 0)).clip(0, 15)
        s, z = (scale * wide_step)[..., None], zero[..., None]
        q = np.clip(np.rint(np.divide(groups, s, out=np.zeros_like(groups), where=s > 0) + z), 0, 15)
        error = np.square((q - z) * s - groups).sum((-1, -2))
        better = error < best_error
        np.copyto(best_error, error, where=better)
        np.copyto(best_step, step, where=better)
        np.copyto(best_scale, scale.astype(np.uint8), where=better[..., None])
        np.copyto(best_q, q.astype(np.uint8), where=better[..., None, None])
    word = np.zeros((*shape[:2], 4), np.uint8)
    word[..., : shape[2]] = best_scale | (zero == fmt.zero - 1).astype(np.uint8) << np.uint8(7)
    return best_q.reshape(w.shape), word.view(np.uint32)[..., 0], best_step


def _pack_quads(quads: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """``[units, spans, K/4, R, 4]`` values of ``bits`` bits → the bytes of a span's values."""
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
    """The inverse: ``[units, spans, bytes]`` → ``[units, spans, K/4, R, 4]``."""
    units, spans, r, bits = len(data), layout.spans, layout.unit_rows, layout.format.bits
    if bits == 8:
        return data.reshape(units, spans, -1, r, 4)
    out = np.empty((units, spans, layout.span // 4, r, 4), np.uint8)
    if bits == 4:
        words = data.reshape(units, spans, -1, r, 4)
        out[:, :, 0::2], out[:, :, 1::2] = words & np.uint8(15), words >> np.uint8(4)
        return out
    words = data.reshape(units, spans, -1, 3, r, 4)
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
    spans = packed.reshape(count, layout.spans, layout.span_bytes)
    values = _unpack_quads(spans[..., layout.header_bytes :], layout).astype(np.float32)
    at = layout.scale_offset
    scale = np.ascontiguousarray(spans[..., at : at + 2 * r]).view(np.uint16 if fmt.whole_scales else np.float16)
    if fmt.whole_scales:
        # [count, spans, R, 4] -> one for each quad of the group
        words = spans[..., : 4 * r].reshape(count, layout.spans, r, 4).transpose(0, 1, 3, 2)
        words = np.repeat(words[:, :, : layout.span // fmt.group], fmt.group // 4, axis=2)[..., None]
        values -= np.float32(fmt.zero) - (words >> np.uint8(7))
        values *= words & np.uint8(15)
    elif fmt.kind == "int4a":
        values -= spans[..., 2 * r : 3 * r].astype(np.float32)[:, :, None, :, None]
    else:
        values -= np.float32(fmt.zero)
    values *= to_f32(scale)[:, :, None, :, None]
    return values.transpose(0, 3, 1, 2, 4).reshape(count * r, k)

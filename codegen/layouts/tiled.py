"""The weights' physical layout on CPUs: tiles of rows, read from start to end.

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
int5-gG      f16 scales [R]; u8 [G/32][5][R][4]; value = scale * (q - 16). Of 32 K values four words hold the
             low nibbles, the fifth the highest bits of all, k..k+3 lowest
int4-gG      u8 scales [R][4], of up to four groups that lie side by side; bf16 steps [R]; then of each of
             these groups u8 [G/8][R][4], low nibbles k..k+3, high k+4..k+7; value = step * scale * (q -
             zero), with the scale in a byte's low half and zero 8, or 7 where the byte's top bit is set
int4a-gG     f16 scales [R]; u8 zero points [R]; u8 values as int4; value = scale * (q - zero)
int4m-gG     f16 scales [R]; f16 mins [R]; u8 values as int4; value = scale * q + min
int4s-gG     f16 scales [R]; u8 values as int4; value = scale * (q - 8)
int5m-gG     f16 scales [R]; f16 mins [R]; u8 values as int5; value = scale * q + min
int4k-gG     of eight groups that lie side by side f16 steps [R]; f16 steps of mins [R]; their eight scales
int5k-gG     and eight mins like 16 values of int6, u8 [3][R][4]; then of each group u8 values as int4 or
             int5; value = step * scale * q + step of mins * min
int6k-gG     of sixteen groups f16 steps [R]; i8 scales [4][R][4]; then of each group u8 values as int6;
             value = step * scale * (q - 32)
===========  =============================================================================================

The scales of int4 are whole multiples of a step, so small that a value times its scale is a byte: products and sums are those of
8-bit weights, with one scale for all groups of a *span*. The whole scales of int4k, int5k and int6k multiply the sums of their
groups; a span is as many groups as have a step, fewer where the width has no whole ones. Of the others a span is one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.base import Ids, MatrixLayout, Parallel
from ferrum.codegen.layouts.formats import F32, NUMBERS, Array, Format, to_bf16, to_f32
from ferrum.codegen.layouts.quantize import quantize_spans
from ferrum.graphs.expressions.evaluate import Pieces

_DECODED = 1 << 20  # values that are decoded at a time


@dataclass(frozen=True)
class TiledLayout(MatrixLayout):
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
    def tile_rows(self) -> int:
        return self.lanes

    @property
    def padded_k(self) -> int:
        step = self.format.group or (2 if self.format.kind == "bf16" else 1)
        return -(-self.k // step) * step

    @property
    def span(self) -> int:
        """K values of a row that share a float scale (0: none)."""
        return self.format.span(self.k) if self.format.group else 0

    @property
    def spans(self) -> int:
        return self.padded_k // self.span if self.span else 0

    @property
    def scale_offset(self) -> int:
        """Where the float scales or steps are in a span."""
        return 4 * self.unit_rows if self.format.whole_scales else 0

    @property
    def numbers_offset(self) -> int:
        """Where whole scales and least values are in a span, behind their steps."""
        return 2 * self.unit_rows * (1 + self.format.mins)

    @property
    def header_bytes(self) -> int:
        """Scales and what belongs to them at the start of a span."""
        if self.format.stepped:
            return self.numbers_offset + self.unit_rows * NUMBERS * self.format.number_bits // 8
        extra = self.unit_rows * (2 if self.format.mins else self.format.zeros)
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

    def encode(self, source: Pieces, parallel: Parallel) -> Iterator[Array]:
        return self.by_units(lambda first, count: self._encode_units(source, first, count), parallel)

    def _encode_units(self, source: Pieces, first: int, count: int) -> Array:
        r, k, fmt = self.unit_rows, self.padded_k, self.format
        if fmt.kind == "f32":
            return np.ascontiguousarray(self.floats(source, first, count).reshape(count, r, k).transpose(0, 2, 1))
        if fmt.kind == "bf16":
            bits = to_bf16(self.floats(source, first, count))
            return np.ascontiguousarray(bits.reshape(count, r, k // 2, 2).transpose(0, 2, 1, 3))
        out = np.empty((count, self.spans, self.span_bytes), np.uint8)

        def by_span(values: Array) -> NDArray[np.uint8]:
            """``[rows, spans]`` values as the bytes of each span."""
            grouped = np.ascontiguousarray(values.reshape(count, r, self.spans).transpose(0, 2, 1))
            return grouped.view(np.uint8).reshape(count, self.spans, -1)

        if fmt.whole_scales:
            q, words, step = quantize_spans(self.floats(source, first, count), fmt, self.span)
            out[..., : 4 * r], out[..., 4 * r : 6 * r] = by_span(words), by_span(step)
        elif fmt.stepped:
            q, numbers, steps = self.stepped(source, first, count)
            out[..., : self.numbers_offset] = np.concatenate([by_span(part) for part in np.moveaxis(steps, -1, 0)], -1)
            packed = _pack_quads(numbers.reshape(count, r, self.spans, -1, 4).transpose(0, 2, 3, 1, 4), fmt.number_bits)
            out[..., self.numbers_offset : self.header_bytes] = packed.reshape(count, self.spans, -1)
        else:
            q, scale, offset = self.quantized(source, first, count)
            out[..., : 2 * r] = by_span(scale)
            if offset is not None:
                out[..., 2 * r : self.header_bytes] = by_span(offset)
        quads = q.reshape(count, r, self.spans, self.span // 4, 4).transpose(0, 2, 3, 1, 4)
        out[..., self.header_bytes :] = _pack_quads(quads, fmt.bits).reshape(count, self.spans, -1)
        return out

    def decode(self, data: memoryview | bytes, ids: Ids | None = None) -> F32:
        rows = self.stored_row(np.arange(self.n) if ids is None else ids)
        unit, inside = np.divmod(rows, self.unit_rows)
        raw = np.frombuffer(data, np.uint8)[: self.nbytes].reshape(self.units, self.unit_bytes)
        out = np.empty((len(unit), self.k), np.float32)
        needed, where = np.unique(unit, return_inverse=True)
        order = np.argsort(where, kind="stable")
        step = max(1, _DECODED // (self.unit_rows * self.padded_k))
        for first in range(0, len(needed), step):
            found = _decode_units(raw[needed[first : first + step]], self)
            low, high = np.searchsorted(where[order], [first, first + step])
            chosen = order[low:high]
            out[chosen] = found[(where[chosen] - first) * self.unit_rows + inside[chosen], : self.k]
        return out


def _pack_quads(quads: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """``[units, spans, K/4, R, 4]`` values of ``bits`` bits → the bytes of a span's values."""
    if bits == 8:
        return np.ascontiguousarray(quads)
    low = quads & np.uint8(15)
    nibbles: NDArray[np.uint8] = low[:, :, 0::2] | (low[:, :, 1::2] << np.uint8(4))
    if bits == 4:
        return nibbles
    width, step = bits - 4, 8 // (bits - 4)  # of what is above a nibble, and quads whose bits of it are a word
    high = quads >> np.uint8(4)
    packed = high[:, :, 0::step].copy()
    for i in range(1, step):
        packed |= high[:, :, i::step] << np.uint8(width * i)
    words = nibbles.reshape(*packed.shape[:3], step // 2, *packed.shape[3:])
    return np.concatenate([words, packed[:, :, :, None]], axis=3)


def _unpack_quads(data: NDArray[np.uint8], r: int, bits: int) -> NDArray[np.uint8]:
    """The inverse: ``[units, spans, bytes]`` → ``[units, spans, K/4, R, 4]``."""
    units, spans = data.shape[:2]
    if bits == 8:
        return data.reshape(units, spans, -1, r, 4)
    out = np.empty((units, spans, data.shape[2] * 2 // bits // r, r, 4), np.uint8)
    if bits == 4:
        words = data.reshape(units, spans, -1, r, 4)
        out[:, :, 0::2], out[:, :, 1::2] = words & np.uint8(15), words >> np.uint8(4)
        return out
    width, step = bits - 4, 8 // (bits - 4)
    words = data.reshape(units, spans, -1, step // 2 + 1, r, 4)
    for i in range(step):
        low = words[:, :, :, i // 2] >> np.uint8(4 * (i % 2)) & np.uint8(15)
        high = words[:, :, :, -1] >> np.uint8(width * i) & np.uint8((1 << width) - 1)
        out[:, :, i::step] = low | high << np.uint8(4)
    return out


def _decode_units(packed: NDArray[np.uint8], layout: TiledLayout) -> F32:
    """Whole units ``[count, unit_bytes]`` as float32 ``[count * R, padded_k]``."""
    r, k, fmt, count = layout.unit_rows, layout.padded_k, layout.format, len(packed)
    if fmt.kind == "f32":
        return packed.view(np.float32).reshape(count, k, r).transpose(0, 2, 1).reshape(count * r, k)
    if fmt.kind == "bf16":
        pairs = np.ascontiguousarray(packed.view(np.uint32).reshape(count, k // 2, r).transpose(0, 2, 1))
        return to_f32(pairs.view(np.uint16).reshape(count * r, k))
    spans = packed.reshape(count, layout.spans, layout.span_bytes)
    values = _unpack_quads(spans[..., layout.header_bytes :], r, fmt.bits).astype(np.float32)
    if fmt.stepped:
        _apply_steps(values, spans, layout)
        return values.transpose(0, 3, 1, 2, 4).reshape(count * r, k)
    at = layout.scale_offset
    scale = np.ascontiguousarray(spans[..., at : at + 2 * r]).view(np.uint16 if fmt.whole_scales else np.float16)
    if fmt.whole_scales:
        # [count, spans, R, 4] -> one for each quad of the group
        words = spans[..., : 4 * r].reshape(count, layout.spans, r, 4).transpose(0, 1, 3, 2)
        words = np.repeat(words[:, :, : layout.span // fmt.group], fmt.group // 4, axis=2)[..., None]
        values -= np.float32(fmt.zero) - (words >> np.uint8(7))
        values *= words & np.uint8(15)
    elif fmt.zeros:
        values -= spans[..., 2 * r : 3 * r].astype(np.float32)[:, :, None, :, None]
    else:
        values -= np.float32(fmt.zero)
    values *= to_f32(scale)[:, :, None, :, None]
    if fmt.mins:
        mins = np.ascontiguousarray(spans[..., 2 * r : 4 * r]).view(np.float16)
        values += to_f32(mins)[:, :, None, :, None]
    return values.transpose(0, 3, 1, 2, 4).reshape(count * r, k)


def _apply_steps(values: F32, spans: NDArray[np.uint8], layout: TiledLayout) -> None:
    """Codes ``[count, spans, K/4, R, 4]`` become values."""
    r, fmt, groups = layout.unit_rows, layout.format, layout.span // layout.format.group
    quads = _unpack_quads(spans[..., layout.numbers_offset : layout.header_bytes], r, fmt.number_bits)
    numbers = quads.transpose(0, 1, 2, 4, 3).reshape(*quads.shape[:2], NUMBERS, r).view(np.int8)

    def stepped(part: int) -> F32:
        steps = to_f32(np.ascontiguousarray(spans[..., 2 * r * part : 2 * r * (part + 1)]).view(np.float16))
        first = part * NUMBERS // 2
        wide = numbers[:, :, first : first + groups].astype(np.float32) * steps[:, :, None]
        return np.repeat(wide, fmt.group // 4, axis=2)[..., None]

    values -= np.float32(fmt.zero)
    values *= stepped(0)
    if fmt.mins:
        values += stepped(1)

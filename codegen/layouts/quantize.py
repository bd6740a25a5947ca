"""Quantizers: floats become codes with the scales, zero points and steps that lose least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.formats import F32, NUMBERS, Array, Format, to_bf16, to_f32

# What the largest whole scale of a span may be: 8 * 15 is a signed byte, and less rounds others better now and then.
_LARGEST = (15, 14, 13, 12)
# Candidate shrink factors of a group's scale: clipping the largest weights a little often lowers the squared error.
_SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77, 0.72)

Candidates = Iterator[tuple[F32, tuple[Array, ...]]]
# codes, scales, and zero points (uint8) or least values (float16) where the format has them
Quantized = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[Any] | None]
# codes, and of each span [rows, spans, ..] its whole numbers as bytes and its steps, one of scales and one of least values
Stepped = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]


def least_error(candidates: Candidates) -> list[NDArray[Any]]:
    """Of candidates (errors, arrays with the same first axes): place by place, what the one with the least error has.

    Zeros where no error is a number.
    """
    best: list[NDArray[Any]] = []
    for error, found in candidates:
        if not best:
            least, best = np.full_like(error, np.inf), [np.zeros_like(array) for array in found]
        better = error < least
        for kept, array in zip((least, *best), (error, *found), strict=True):
            np.copyto(kept, array, where=better.reshape(better.shape + (1,) * (array.ndim - better.ndim)))
    return best


def quantize_groups(w: F32, fmt: Format) -> Quantized:
    """Quantize ``w [rows, K]`` (K a multiple of the group) to ``q [rows, K]``, ``scale [rows, K/G]`` and zero points or mins.

    Scales are those among a few shrunk candidates with the least squared error, as stored (in float16).
    """
    rows, k = w.shape
    groups = w.reshape(rows, k // fmt.group, fmt.group)
    levels = (1 << fmt.bits) - 1
    if fmt.mins:
        return _quantize_above(groups, levels)
    if fmt.zeros:
        low, high = np.minimum(groups.min(-1), 0.0), np.maximum(groups.max(-1), 0.0)
        span, half = (high - low) / levels, None
    else:
        extreme = _furthest(groups)
        # int4: the value of largest magnitude goes to -8, so the sign of the scale follows it and no level is wasted
        half = fmt.zero - 1 if fmt.kind == "int8" else -fmt.zero
        low, span = None, (np.abs(extreme) if fmt.kind == "int8" else extreme) / half

    def candidates() -> Candidates:
        for shrink in _SHRINK if fmt.bits == 4 else (1.0,):
            scale = np.clip(span * shrink, -65504, 65504).astype(np.float16)
            s = scale.astype(np.float32)
            inverse = np.divide(1.0, s, out=np.zeros_like(s), where=s != 0)
            zero = np.clip(np.rint(-low * shrink * inverse), 0, levels) if low is not None else np.float32(fmt.zero)
            z = np.broadcast_to(zero, s.shape)
            q = np.clip(np.rint(groups * inverse[..., None] + z[..., None]), 0, levels)
            error = np.square((q - z[..., None]) * s[..., None] - groups).sum(-1)
            yield error, (q.astype(np.uint8), scale, z.astype(np.uint8))

    q, scale, zero = least_error(candidates())
    return q.reshape(rows, k), scale, zero if fmt.zeros else None


def _quantize_above(groups: F32, levels: int) -> Quantized:
    """``[rows, K/G, G]`` in even steps from the least value of each group to its greatest."""
    low = groups.min(-1).clip(-65504, 65504).astype(np.float16)
    least = low.astype(np.float32)[..., None]
    scale = ((groups.max(-1) - least[..., 0]) / levels).clip(0, 65504).astype(np.float16)
    step = scale.astype(np.float32)[..., None]
    steps = np.divide(groups - least, step, out=np.zeros_like(groups), where=step != 0)
    return np.clip(np.rint(steps), 0, levels).astype(np.uint8).reshape(len(groups), -1), scale, low


def quantize_spans(
    w: F32, fmt: Format, span: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint16]]:
    """Quantize ``w [rows, K]`` (K a multiple of the span) with whole scales.

    ``q [rows, K]``, for each span ``[rows, K/span]`` a word of four bytes, each a group's scale and which zero it has, and the
    step as bfloat16. The scales that ``quantize_groups`` finds become multiples of the step with the least squared error.
    """
    shape = (len(w), w.shape[1] // span, span // fmt.group)
    wide = quantize_groups(w, fmt)[1].astype(np.float32).reshape(shape)
    groups, magnitude = w.reshape(*shape, fmt.group), np.abs(wide)
    zero = np.where(wide < 0, np.float32(fmt.zero - 1), np.float32(fmt.zero))

    def candidates() -> Candidates:
        for largest in _LARGEST:
            step = to_bf16(magnitude.max(-1) / np.float32(largest))
            wide_step = to_f32(step)[..., None]
            scale = np.rint(np.divide(magnitude, wide_step, out=np.zeros_like(magnitude), where=wide_step > 0)).clip(0, 15)
            s, z = (scale * wide_step)[..., None], zero[..., None]
            q = np.clip(np.rint(np.divide(groups, s, out=np.zeros_like(groups), where=s > 0) + z), 0, 15)
            yield np.square((q - z) * s - groups).sum((-1, -2)), (q.astype(np.uint8), scale.astype(np.uint8), step)

    q, scale, step = least_error(candidates())
    word = np.zeros((*shape[:2], 4), np.uint8)
    word[..., : shape[2]] = scale | (zero == fmt.zero - 1).astype(np.uint8) << np.uint8(7)
    return q.reshape(w.shape), word.view(np.uint32)[..., 0], step


def quantize_steps(w: F32, fmt: Format, span: int) -> Stepped:
    """Quantize ``w [rows, K]`` (K a multiple of the span): scales and least values are the nearest multiples of their steps."""
    levels = (1 << fmt.bits) - 1
    groups = w.reshape(len(w), w.shape[1] // span, span // fmt.group, fmt.group)
    if fmt.mins:
        low = np.minimum(groups.min(-1), 0.0)
        parts, largest = [(groups.max(-1) - low) / levels, low], 63
    else:
        parts, largest = [_furthest(groups) / -fmt.zero], 127
    steps = np.stack([_furthest(part) / largest for part in parts], axis=-1).clip(-65504, 65504).astype(np.float16)
    wide = steps.astype(np.float32)[:, :, None]
    found = [_multiples(part, wide[..., i]).clip(-largest, largest) for i, part in enumerate(parts)]
    offset = found[1] * wide[..., 1] if fmt.mins else np.float32(0)
    scale = (found[0] * wide[..., 0])[..., None]
    q = np.clip(_multiples(groups - np.expand_dims(offset, -1), scale) + fmt.zero, 0, levels)
    return q.astype(np.uint8).reshape(w.shape), in_numbers([part.astype(np.int8) for part in found]), steps


def in_numbers(parts: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """``[rows, spans, groups]`` scales, and least values, as the bytes of each span, each part in its half of them."""
    rows, spans, count = parts[0].shape
    numbers = np.zeros((rows, spans, len(parts), NUMBERS // len(parts)), np.uint8)
    for at, part in enumerate(parts):
        numbers[:, :, at, :count] = part.view(np.uint8)
    return numbers.reshape(rows, spans, NUMBERS)


def _furthest(values: F32) -> F32:
    """Of the last axis the value of largest magnitude."""
    return np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]


def _multiples(values: F32, steps: F32) -> F32:
    """How many steps a value is, rounded; none of steps that are 0."""
    return np.rint(np.divide(values, steps, out=np.zeros_like(values), where=steps != 0))

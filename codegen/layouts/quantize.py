"""Quantizers: floats become codes with the scales, zero points and steps that lose least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.formats import F32, Format, to_bf16, to_f32

# What the largest whole scale of a span may be: 8 * 15 is a signed byte, and less rounds others better now and then.
_LARGEST = (15, 14, 13, 12)
# Candidate shrink factors of a group's scale: clipping the largest weights a little often lowers the squared error.
_SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77, 0.72)

Quantized = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8] | None]


def quantize_groups(w: F32, fmt: Format) -> Quantized:
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

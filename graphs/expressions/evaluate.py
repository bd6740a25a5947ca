"""The values of expressions, any rectangle of them: only what is asked for is read from the tensors.

One evaluator serves the writer of packs, the prover and the interpreter. ``ExprRows`` is what a layout encodes: rows as floats,
or as codes, scales and zero points where the expression keeps its blocks. bfloat16 is held as uint16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import (
    Blocked,
    Cat,
    Components,
    Dequant,
    Expr,
    Factors,
    Field,
    Ints,
    Map,
    Permute,
    Pick,
    Repeat,
    Reshape,
    Rows,
    Stack,
    Tensor,
    Unpack,
    View,
    element,
    inputs,
)
from ferrum.graphs.expressions.functions import FUNCTIONS
from ferrum.graphs.expressions.ggml.table import BLOCKS
from ferrum.graphs.expressions.quarters import factors_of

Array: TypeAlias = NDArray[Any]
Box: TypeAlias = tuple[slice, ...]  # one for each axis: start, stop and step, none of them left out

FLOATS = ("f32", "bf16", "f16", "f64")
PARTS = tuple(part.name for part in fields(Components))
_VIEWS = {"i8": np.int8, "f16": np.float16}


class Reader(Protocol):
    """Tensors by name, mapped or in memory."""

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(dtype as f32, bf16, i32 …, shape)."""

    def read(self, name: str) -> Array: ...


class Pieces(Protocol):
    """A parameter's rows, read piece by piece: as floats, or as codes with their scales where it is ``blocked``."""

    @property
    def shape(self) -> Ints: ...
    @property
    def blocked(self) -> Blocked | None: ...
    def values(self, rows: slice) -> Array: ...
    def blocks(self, rows: slice) -> QuantBlocks: ...
    def element(self, index: int) -> Pieces:
        """What is at ``index`` of the first axis."""


class Arrays:
    """A reader of arrays in memory."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        dtype = self.arrays[name].dtype
        return f"{dtype.kind}{8 * dtype.itemsize}", self.arrays[name].shape

    def read(self, name: str) -> Array:
        return self.arrays[name]


def to_float(data: Array, dtype: str) -> Array:
    """``data`` as float32 (f64 stays); bf16 bits are the upper half of a float32."""
    if dtype == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    if dtype not in FLOATS:
        raise FerrumError("dtype-unsupported", f"weights of {dtype} cannot be read as floats", "", f"one of {', '.join(FLOATS)}")
    return data if dtype in ("f32", "f64") else data.astype(np.float32)


def whole(shape: Ints) -> Box:
    return tuple(slice(0, size, 1) for size in shape)


def length(part: slice) -> int:
    return len(range(part.start, part.stop, part.step))


def last(part: slice) -> int:
    return int(part.start + (length(part) - 1) * part.step)


@dataclass(frozen=True)
class QuantBlocks:
    """Quantized values: step * scale * (code - zero) + min_step * min, a block of ``size`` along ``axis`` at a time.

    Codes are shaped as the values, the others as ``Components`` says.
    """

    codes: Array
    scales: Array
    zeros: Array | None
    size: int
    axis: int
    mins: Array | None = None
    steps: Array | None = None
    min_steps: Array | None = None

    def __getitem__(self, rows: slice) -> QuantBlocks:
        """Rows of the first axis, which is not the blocks' own."""
        cut: dict[str, Any] = {name: part[rows] for name, part in self.parts().items()}
        return replace(self, **cut)

    def parts(self) -> dict[str, Any]:
        """Those that there are, by name."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    @staticmethod
    def joined(pieces: Sequence[QuantBlocks]) -> QuantBlocks:
        """Pieces one after the other along the first axis."""
        whole: dict[str, Any] = {name: np.concatenate([piece.parts()[name] for piece in pieces]) for name in pieces[0].parts()}
        return replace(pieces[0], **whole)

    def values(self) -> NDArray[np.float32]:
        """float32, in the order that kernels compute in."""
        codes = self.codes.astype(np.float32)
        if self.zeros is not None:
            codes -= np.repeat(self.zeros.astype(np.float32), self.size, self.axis)
        codes *= self._wide(self.scales, self.steps)
        if self.mins is not None:
            codes += self._wide(self.mins, self.min_steps)
        return codes

    def _wide(self, numbers: Array, steps: Array | None) -> NDArray[np.float32]:
        """Numbers of blocks times the steps of their spans, one for each value."""
        found = numbers.astype(np.float32)
        if steps is not None:
            found *= np.repeat(steps.astype(np.float32), found.shape[self.axis] // steps.shape[self.axis], self.axis)
        return np.repeat(found, self.size, self.axis)


def evaluate(expr: Expr, reader: Reader, box: Box) -> Array:
    """The values inside of ``box``: float32, float64 where a tensor is, or integers as they are stored."""
    return _EVALUATE[type(expr)](expr, reader, box)


def _tensor(expr: Tensor, reader: Reader, box: Box) -> Array:
    data = reader.read(expr.name)[box]
    return to_float(data, reader.info(expr.name)[0]) if expr.dtype == "f32" else data


def _rows(expr: Rows, reader: Reader, box: Box) -> Array:
    part, step = box[expr.axis], expr.step
    moved = slice(expr.start + part.start * step, expr.start + last(part) * step + 1, part.step * step)
    return evaluate(expr.source, reader, (*box[: expr.axis], moved, *box[expr.axis + 1 :]))


def _cat(expr: Cat, reader: Reader, box: Box) -> Array:
    asked, at, found = box[expr.axis], 0, []
    for part in expr.parts:
        size = part.type.shape[expr.axis]
        first = asked.start + max(0, -(-(at - asked.start) // asked.step)) * asked.step
        stop = min(asked.stop, at + size)
        if first < stop:
            here = slice(first - at, stop - at, asked.step)
            found.append(evaluate(part, reader, (*box[: expr.axis], here, *box[expr.axis + 1 :])))
        at += size
    return found[0] if len(found) == 1 else np.concatenate(found, expr.axis)


def _stack(expr: Stack, reader: Reader, box: Box) -> Array:
    chosen = expr.parts[box[0].start : box[0].stop : box[0].step]
    return np.stack([evaluate(part, reader, box[1:]) for part in chosen])


def _reshape(expr: Reshape, reader: Reader, box: Box) -> Array:
    """Reads the smallest box of the source whose elements, in order, are a run that holds all that is asked for."""
    shape, source = expr.shape, expr.source.type.shape
    lead = 0
    while lead < len(shape) and length(box[lead]) == 1:
        lead += 1
    start = sum(box[axis].start * math.prod(shape[axis + 1 :]) for axis in range(lead))
    inner = math.prod(shape[lead + 1 :])
    first, stop = (box[lead].start, last(box[lead]) + 1) if lead < len(shape) else (0, 1)
    low, high = start + first * inner, start + stop * inner
    run, skipped = _run(low, high, source)
    flat = evaluate(expr.source, reader, run).reshape(-1)[skipped : skipped + high - low]
    if lead < len(shape):
        flat = flat.reshape(stop - first, *shape[lead + 1 :])[(slice(None, None, box[lead].step), *box[lead + 1 :])]
    return flat.reshape([length(part) for part in box])


def _run(low: int, high: int, shape: Ints) -> tuple[Box, int]:
    """A box of ``shape`` that holds the elements ``low:high`` as one run, and how many of its elements come before them."""
    run: list[slice] = []
    for axis in range(len(shape)):
        inner = math.prod(shape[axis + 1 :])
        first, final = low // inner, (high - 1) // inner
        run.append(slice(first, final + 1, 1))
        low, high = low - first * inner, high - first * inner
        if final > first:
            return (*run, *whole(shape[axis + 1 :])), low
    return tuple(run), 0


def _permute(expr: Permute, reader: Reader, box: Box) -> Array:
    inner = tuple(box[expr.order.index(axis)] for axis in range(len(box)))
    return evaluate(expr.source, reader, inner).transpose(expr.order)


def _map(expr: Map, reader: Reader, box: Box) -> Array:
    return FUNCTIONS[expr.function].apply(evaluate(expr.source, reader, box), expr.value)


def _factors(expr: Factors, reader: Reader, box: Box) -> Array:
    values = evaluate(expr.source, reader, box)
    chosen = factors_of(expr.quarters[box[expr.axis]])
    return np.asarray(values * chosen.reshape(-1, *[1] * (values.ndim - 1 - expr.axis)).astype(values.dtype))


def _dequant(expr: Dequant, reader: Reader, box: Box) -> Array:
    blocked = expr.type.blocked
    assert blocked is not None
    axis, size, unit = blocked.axis, expr.type.shape[blocked.axis], blocked.span or blocked.size
    unit = unit or size
    low, high = box[axis].start // unit * unit, (last(box[axis]) // unit + 1) * unit
    found = _blocks_of(expr.scheme.components(expr.parts), blocked, reader, box, (low, high))
    inside = slice(box[axis].start - low, min(box[axis].stop, size) - low, box[axis].step)
    return found.values()[(*[slice(None)] * axis, inside)]


def _field(expr: Field, reader: Reader, box: Box) -> Array:
    block = BLOCKS[expr.block]
    count = block.count(expr.part)
    low, high = box[-1].start // count, last(box[-1]) // count + 1
    data = evaluate(expr.source, reader, (*box[:-1], slice(low * block.nbytes, high * block.nbytes, 1)))
    taken = block.take(expr.part, data.reshape(-1, block.nbytes)).reshape(*data.shape[:-1], -1)
    return taken[..., slice(box[-1].start - low * count, box[-1].stop - low * count, box[-1].step)]


def _view(expr: View, reader: Reader, box: Box) -> Array:
    full = slice(0, expr.source.type.shape[-1], 1)
    data = np.ascontiguousarray(evaluate(expr.source, reader, (*box[:-1], full)))
    return data.view(_VIEWS[expr.dtype])[..., box[-1]]


def _unpack(expr: Unpack, reader: Reader, box: Box) -> Array:
    axis, run = expr.axis, math.lcm(expr.width, expr.bits)
    per_run, words_per_run = run // expr.bits, run // expr.width
    low, high = box[axis].start // per_run, last(box[axis]) // per_run + 1
    here = slice(low * words_per_run, min(high * words_per_run, expr.source.type.shape[axis]), 1)
    words = np.moveaxis(evaluate(expr.source, reader, (*box[:axis], here, *box[axis + 1 :])), axis, 0)
    runs = _whole_runs(words, words_per_run, expr.width)
    bits = np.array(expr.places or range(per_run), np.uint64) * np.uint64(expr.bits)
    first, shifts = bits // np.uint64(expr.width), bits % np.uint64(expr.width)
    shifts = shifts.astype(runs.dtype).reshape(-1, *[1] * (words.ndim - 1))
    picked = runs if words_per_run == 1 else runs[:, first]
    values = (picked >> shifts & runs.dtype.type((1 << expr.bits) - 1)).reshape(-1, *words.shape[1:])
    whole = values.astype(np.int16 if expr.plus and expr.bits == 8 else np.int8 if expr.plus < 0 else np.uint8)
    whole += whole.dtype.type(expr.plus)
    inside = slice(box[axis].start - low * per_run, box[axis].stop - low * per_run, box[axis].step)
    return np.moveaxis(whole[inside], 0, axis)


def _whole_runs(words: Array, count: int, width: int) -> Array:
    """``[runs, count, ..]`` of words, each with the lowest bits of the next one above its own where numbers cross words."""
    plain = words.view(np.uint32) if width == 32 else words
    if count == 1:
        return plain[:, None]
    wide = np.zeros((-(-len(plain) // count) * count, *plain.shape[1:]), np.uint64)
    wide[: len(plain)] = plain
    wide[:-1] |= wide[1:] << np.uint64(width)
    return wide.reshape(-1, count, *plain.shape[1:])


def _repeat(expr: Repeat, reader: Reader, box: Box) -> Array:
    axis, here = expr.axis, box[expr.axis]
    low, high = here.start // expr.times, last(here) // expr.times + 1
    found = evaluate(expr.source, reader, (*box[:axis], slice(low, high, 1), *box[axis + 1 :]))
    inside = slice(here.start - low * expr.times, here.stop - low * expr.times, here.step)
    return np.repeat(found, expr.times, axis)[(*[slice(None)] * axis, inside)]


def _pick(expr: Pick, reader: Reader, box: Box) -> Array:
    axis, axes = expr.axis, len(expr.index.type.shape)
    index = evaluate(expr.index, reader, box[axis : axis + axes])
    here = slice(0, expr.source.type.shape[axis], 1)
    return np.take(evaluate(expr.source, reader, (*box[:axis], here, *box[axis + axes :])), index, axis)


_EVALUATE: dict[type, Callable[[Any, Reader, Box], Array]] = {
    Tensor: _tensor, Rows: _rows, Cat: _cat, Stack: _stack, Reshape: _reshape, Permute: _permute, Map: _map,
    Factors: _factors, Dequant: _dequant, View: _view, Unpack: _unpack, Repeat: _repeat, Pick: _pick, Field: _field,
}  # fmt: skip


def _blocks_of(found: Components, blocked: Blocked, reader: Reader, box: Box, run: tuple[int, int]) -> QuantBlocks:
    """Values ``run[0]:run[1]`` along the blocks' axis, whole blocks and spans, and ``box`` along the others."""
    axis, size = blocked.axis, blocked.size or run[1]
    lengths = {"codes": 1, "steps": blocked.span, "min_steps": blocked.span}

    def part(name: str) -> Any:
        expr, each = getattr(found, name), lengths.get(name, size)
        if expr is None:
            return None
        return evaluate(expr, reader, (*box[:axis], slice(run[0] // each, run[1] // each, 1), *box[axis + 1 :]))

    return QuantBlocks(size=size, axis=axis, **{name: part(name) for name in PARTS})


def _components(expr: Expr) -> Components:
    """The components of an expression that keeps its blocks: the same cuts and joins of each."""
    if isinstance(expr, Dequant):
        return expr.scheme.components(expr.parts)
    assert isinstance(expr, Cat | Stack | Rows | Reshape | Permute)
    inner = [_components(part) for part in inputs(expr)]

    def same(parts: tuple[Expr, ...]) -> Expr:
        if isinstance(expr, Cat | Stack):
            return replace(expr, parts=parts)
        (part,) = parts
        if isinstance(expr, Reshape):
            before, after = expr.source.type.blocked, expr.type.blocked
            assert before is not None and after is not None
            return Reshape(part, (*expr.shape[: after.axis], part.type.shape[before.axis], *expr.shape[after.axis + 1 :]))
        return replace(expr, source=part)

    def whole(name: str) -> Expr | None:
        parts = tuple(found for components in inner if (found := getattr(components, name)) is not None)
        return same(parts) if parts else None

    codes, scales = whole("codes"), whole("scales")
    assert codes is not None and scales is not None
    return Components(codes, scales, **{name: whole(name) for name in PARTS[2:]})


def lies_across(expr: Expr) -> bool:
    """Whether neighbours of a row lie far apart in a tensor, so that a few rows touch all of it."""
    turned = isinstance(expr, Permute) and expr.order[0] != 0
    return turned or any(map(lies_across, inputs(expr)))


@dataclass(frozen=True)
class ExprRows:
    """An expression's rows, as a layout encodes them."""

    expr: Expr
    reader: Reader

    @property
    def shape(self) -> Ints:
        return self.expr.type.shape

    @property
    def blocked(self) -> Blocked | None:
        return self.expr.type.blocked

    def values(self, rows: slice) -> Array:
        """Rows ``start:stop`` of the first axis as floats; a single number has none."""
        if not self.shape:
            return evaluate(self.expr, self.reader, ())
        return evaluate(self.expr, self.reader, (slice(rows.start, rows.stop, 1), *whole(self.shape[1:])))

    def blocks(self, rows: slice) -> QuantBlocks:
        """The same as codes, scales and zero points; only of an expression with ``blocked`` along another axis than the first."""
        blocked = self.blocked
        assert blocked is not None and blocked.axis > 0
        box = (slice(rows.start, rows.stop, 1), *whole(self.shape[1:]))
        return _blocks_of(_components(self.expr), blocked, self.reader, box, (0, self.shape[blocked.axis]))

    def element(self, index: int) -> ExprRows:
        return ExprRows(element(self.expr, index), self.reader)


def in_memory(array: Array) -> ExprRows:
    """Floats as a source."""
    return ExprRows(Tensor("", array.shape), Arrays({"": array}))


def pick(source: ExprRows, ids: Sequence[int] | NDArray[np.int64]) -> Array:
    """Chosen rows in the order of ``ids``; each is read once."""
    wanted, where = np.unique(np.asarray(ids, np.int64), return_inverse=True)
    if not len(wanted):
        return np.empty((0, *source.shape[1:]), np.float32)
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
    return np.concatenate([source.values(slice(int(run[0]), int(run[-1]) + 1)) for run in runs])[where]

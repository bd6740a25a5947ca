"""ONNX ops that give elements another form, or pick and place them along axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ferrum.graphs.dims import Dim, add, floor_divide, multiply, subtract
from ferrum.graphs.frontend.builder import Unsupported, between, count_of, every, negative, places_of_several
from ferrum.graphs.frontend.onnx_held import Empty, Held, Sizes, as_tokens, filling, product, shape_as_sizes, sizes
from ferrum.graphs.frontend.uniform import uniform
from ferrum.graphs.ir import Shape
from ferrum.graphs.onnx.file import OnnxNode
from ferrum.graphs.op_spec import broadcast, count

if TYPE_CHECKING:
    from ferrum.graphs.frontend.onnx import Importer

FAR = 1 << 31  # exporters write "to the end" as one of several large numbers


def identity(imp: Importer, node: OnnxNode) -> Held:
    return imp.held(node, 0)


def constant(imp: Importer, node: OnnxNode) -> Held:
    """Numbers written as attributes; tensors are entered when the file is read."""
    for key in ("value_int", "value_ints"):
        if key in node.attributes:
            return sizes(node.integers(key) if key.endswith("s") else node.integer(key))
    if "value_float" in node.attributes:
        return imp.constant(node.floating("value_float", 0.0), (), "f32")
    floats = node.attributes.get("value_floats")
    if isinstance(floats, list) and floats and all(isinstance(number, float) for number in floats):
        return imp.numbers_as_value("numbers", np.array(floats, np.float64), "f32")
    raise Unsupported("a constant that is no tensor of numbers", "float or int64 tensors")


def shape_of(imp: Importer, held: Held) -> Shape:
    if isinstance(held, str):
        return imp.type(held).shape
    assert held is not None
    return held.shape if isinstance(held, Empty) else held.values.shape


def shape(imp: Importer, node: OnnxNode) -> Held:
    found = shape_of(imp, imp.held(node, 0))
    start, end = node.integer("start"), node.integer("end", len(found))
    return shape_as_sizes(found[slice(start, end)])


def size(imp: Importer, node: OnnxNode) -> Held:
    return sizes(product(shape_of(imp, imp.held(node, 0))))


def target(imp: Importer, node: OnnxNode, at: int) -> list[Dim]:
    return imp.sizes(node, at, "a shape").reshape(-1).tolist()


def reshape(imp: Importer, node: OnnxNode) -> Held:
    held, wanted = imp.held(node, 0), target(imp, node, 1)
    old = shape_of(imp, held)
    if not node.integer("allowzero"):
        wanted = [old[at] if dim == 0 else dim for at, dim in enumerate(wanted)]
    if -1 in wanted and not isinstance(held, Empty):
        at = wanted.index(-1)
        wanted[at] = missing(old, (*wanted[:at], *wanted[at + 1 :]))
    if isinstance(held, Empty):
        return Empty(tuple(0 if dim == -1 else dim for dim in wanted), held.dtype)
    return imp.reshape(imp.tensor(node, 0), tuple(wanted))


def missing(old: Shape, known: Shape) -> Dim:
    """The size of the axis that holds what the others leave."""
    total, rest = count(old), count(known)
    found = floor_divide(total, rest)
    if multiply(found, rest) != total:
        raise Unsupported(f"a reshape of {[str(d) for d in old]} to {[*map(str, known), '-1']}", "sizes that divide")
    return as_tokens(found)


def flatten(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0)
    old = imp.type(x).shape
    axis = node.integer("axis", 1)
    axis += len(old) if axis < 0 else 0
    return imp.reshape(x, tuple(as_tokens(count(part)) for part in (old[:axis], old[axis:])))


def squeeze(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0)
    old = imp.type(x).shape
    axes = imp.axes(node, 1, len(old)) or [axis for axis, dim in enumerate(old) if dim == 1]
    if any(old[axis] != 1 for axis in axes):
        raise Unsupported(f"Squeeze of {[str(d) for d in old]}", "axes of length 1")
    return imp.reshape(x, tuple(dim for axis, dim in enumerate(old) if axis not in axes))


def unsqueeze(imp: Importer, node: OnnxNode) -> Held:
    held = imp.held(node, 0)
    old = list(shape_of(imp, held))
    named = imp.numbers(node, 1, "axes") if imp.given(node, 1) else node.integers("axes")
    for axis in sorted(imp.axis(axis, len(old) + len(named)) for axis in named):
        old.insert(axis, 1)
    return Empty(tuple(old), held.dtype) if isinstance(held, Empty) else imp.reshape(imp.tensor(node, 0), tuple(old))


def transpose(imp: Importer, node: OnnxNode) -> Held:
    held = imp.held(node, 0)
    rank = len(shape_of(imp, held))
    order = tuple(node.integers("perm")) or tuple(range(rank))[::-1]
    if isinstance(held, Empty):
        return Empty(tuple(held.shape[axis] for axis in order), held.dtype)
    return imp.emit("permute", imp.tensor(node, 0), order=order)


def expand(imp: Importer, node: OnnxNode) -> Held:
    held, wanted = imp.held(node, 0), tuple(target(imp, node, 1))
    if isinstance(held, Empty):
        return Empty(broadcast(held.shape, wanted), held.dtype)
    x = imp.tensor(node, 0)
    wide = broadcast(imp.type(x).shape, wanted)
    return x if wide == imp.type(x).shape else imp.emit("expand", x, shape=wide)


def tile(imp: Importer, node: OnnxNode) -> str:
    """An axis of length 1 widens; a longer one gets an axis of copies in front, and the two are one."""
    x = imp.tensor(node, 0)
    for axis, times in enumerate(target(imp, node, 1)):
        old = imp.type(x).shape
        before, dim, after = old[:axis], old[axis], old[axis + 1 :]
        if times != 1 and dim == 1:
            x = imp.emit("expand", x, shape=(*before, times, *after))
        elif times != 1:
            x = imp.emit("expand", imp.reshape(x, (*before, 1, dim, *after)), shape=(*before, times, dim, *after))
            x = imp.reshape(x, (*before, product([times, dim]), *after))
    return x


def concat(imp: Importer, node: OnnxNode) -> Held:
    """What has no elements adds none."""
    held = [imp.held(node, at) for at in range(len(node.inputs))]
    full = [at for at, one in enumerate(held) if not isinstance(one, Empty)]
    if not full:
        return held[0]
    names = [imp.tensor(node, at) for at in full]
    axis = imp.axis(node.integer("axis"), len(imp.type(names[0]).shape))
    return names[0] if len(names) == 1 else imp.emit("cat", *names, axis=axis)


def split(imp: Importer, node: OnnxNode) -> tuple[Held, ...]:
    x = imp.tensor(node, 0)
    axis = imp.axis(node.integer("axis"), len(imp.type(x).shape))
    length = imp.type(x).shape[axis]
    if not isinstance(length, int):
        raise Unsupported(f"a split of the {length} axis", "an axis of fixed size")
    if imp.given(node, 1) or "split" in node.attributes:
        widths = imp.numbers(node, 1, "sizes") if imp.given(node, 1) else node.integers("split")
    else:
        parts = node.integer("num_outputs", len(node.outputs))
        step = -(-length // max(1, parts))
        widths = [min(step, length - start) for start in range(0, length, step)]
    found, start = [], 0
    for width in widths:
        found.append(imp.part(x, axis, start, start + width))
        start += width
    return tuple(found)


def cut(imp: Importer, node: OnnxNode) -> Held:
    held = imp.held(node, 0)
    starts, ends = (imp.sizes(node, at, "the end of a slice").reshape(-1).tolist() for at in (1, 2))
    rank = len(shape_of(imp, held))
    axes = imp.numbers(node, 3, "axes") if imp.given(node, 3) else list(range(len(starts)))
    steps = imp.numbers(node, 4, "a step") if imp.given(node, 4) else [1] * len(starts)
    if isinstance(held, Empty):
        return held
    x = imp.tensor(node, 0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = along(imp, x, imp.axis(axis, rank), start, end, step)
    return x


def along(imp: Importer, x: str, axis: int, start: Dim, end: Dim, step: int) -> str:
    length = imp.type(x).shape[axis]
    if step < 0:
        return backwards(imp, x, axis, start, end, step)
    first, stop = place(start, length), place(end, length)
    if (first, stop, step) == (0, length, 1):
        return x
    if isinstance(first, int) and isinstance(stop, int) and isinstance(length, int):
        return imp.part(x, axis, first, stop) if step == 1 else every(imp, x, axis, first, stop, step)
    if step != 1 or negative(subtract(length, stop)):
        raise Unsupported(f"a part of the {length} axis that depends on the input's size", "the whole axis")
    return between(imp, x, axis, first, stop)


def backwards(imp: Importer, x: str, axis: int, start: Dim, end: Dim, step: int) -> str:
    """A whole axis in reverse."""
    length = imp.type(x).shape[axis]
    whole = isinstance(start, int) and isinstance(end, int) and isinstance(length, int) and step == -1
    if not whole or not (start == -1 or int(start) >= int(length) - 1) or int(end) > -int(length):
        raise Unsupported("a slice with a negative step", "a whole axis of fixed size in reverse")
    return imp.emit("take", x, imp.emit("iota", shape=(length,), dtype="i64", start=int(length) - 1, step=-1), axis=axis)


def place(at: Dim, length: Dim) -> Dim:
    """A place along an axis, counted from its start: negative ones count from the end, those behind it are the end."""
    if isinstance(at, int):
        if at >= FAR or at <= -FAR:
            return length if at > 0 else 0
        found = add(length, at) if at < 0 else at
        return max(0, min(found, length)) if isinstance(length, int) and isinstance(found, int) else found
    return add(length, at) if negative(at) else at


def gather(imp: Importer, node: OnnxNode) -> Held:
    """Rows of a matrix of weights are embeddings, known places next to each other a slice, others are taken."""
    held, places = imp.held(node, 0), imp.held(node, 1)
    if isinstance(held, Empty):
        raise Unsupported("Gather of a tensor without elements", "parts of one element or more")
    x = imp.tensor(node, 0)
    old = imp.type(x).shape
    axis = imp.axis(node.integer("axis"), len(old))
    if (one := uniform(imp.scope, x)) is not None:
        return imp.constant(one, (*old[:axis], *shape_of(imp, places), *old[axis + 1 :]), imp.type(x).dtype)
    length = old[axis]
    if isinstance(places, Sizes) and places.fixed and isinstance(length, int):
        return known_places(imp, x, axis, places.values.astype(np.int64) % length)
    at = imp.tensor(node, 1)
    param = imp.scope.params.get(x)
    if axis == 0 and len(old) == 2 and param is not None and param.weight is not None:
        return imp.emit("embedding", at, x, scale=1.0)
    return imp.emit("take", x, at, axis=axis)


def known_places(imp: Importer, x: str, axis: int, places: np.ndarray[Any, Any]) -> str:
    old = imp.type(x).shape
    flat = places.reshape(-1)
    if len(flat) and (flat == flat[0] + np.arange(len(flat))).all() and places.ndim <= 1:
        found = imp.part(x, axis, int(flat[0]), int(flat[0]) + len(flat))
        return imp.reshape(found, (*old[:axis], *places.shape, *old[axis + 1 :]))
    return imp.emit("take", x, imp.numbers_as_value("places", places.astype(np.float64), "i64"), axis=axis)


def gather_elements(imp: Importer, node: OnnxNode) -> str:
    x, at = imp.tensor(node, 0), imp.tensor(node, 1)
    return imp.emit("gather", x, at, axis=imp.axis(node.integer("axis"), len(imp.type(x).shape)))


def gather_nd(imp: Importer, node: OnnxNode) -> str:
    """Places along the first axes, which are taken as one."""
    x, at = imp.tensor(node, 0), imp.tensor(node, 1)
    old, places = imp.type(x).shape, imp.type(at).shape
    depth = places[-1] if places else None
    if not isinstance(depth, int) or node.integer("batch_dims"):
        raise Unsupported("GatherND with batch axes", "Gather")
    if (one := uniform(imp.scope, x)) is not None:
        return imp.constant(one, (*places[:-1], *old[depth:]), imp.type(x).dtype)
    columns = [imp.reshape(imp.part(at, len(places) - 1, i, i + 1), places[:-1]) for i in range(depth)]
    flat = imp.reshape(x, (product(old[:depth]), *old[depth:]))
    return imp.emit("take", flat, places_of_several(imp, columns, old[:depth]), axis=0)


def scatter_elements(imp: Importer, node: OnnxNode) -> str:
    kinds = {"none": "scatter", "add": "scatter_add"}
    kind = node.text("reduction", "none")
    if kind not in kinds:
        raise Unsupported(f"ScatterElements with {kind[:20]}", "none or add")
    x, at = imp.tensor(node, 0), imp.tensor(node, 1)
    values = imp.tensor(node, 2, imp.type(x).dtype)
    return imp.emit(kinds[kind], x, at, values, axis=imp.axis(node.integer("axis"), len(imp.type(x).shape)))


def filled(imp: Importer, node: OnnxNode) -> Held:
    wanted, one = tuple(target(imp, node, 0)), filling(node)
    dtype = "bool" if one.dtype == bool else "i64" if one.dtype.kind in "iu" else "f32"
    return Empty(wanted, dtype) if 0 in wanted else imp.constant(float(one[0]), wanted, dtype)


def counted(imp: Importer, node: OnnxNode) -> str:
    start, limit, step = (imp.sizes(node, at, "a range") for at in range(3))
    first, end, by = (part.reshape(-1)[0] for part in (start, limit, step))
    if not isinstance(by, int) or by == 0:
        raise Unsupported("a range whose step depends on the input's size", "a constant")
    length = subtract(end, first)
    if by != 1:
        length = floor_divide(add(length, by - 1), by) if by > 0 else floor_divide(subtract(-by - 1, length), -by)
    row = imp.emit("iota", shape=(as_tokens(length),), dtype="i64", start=first if isinstance(first, int) else 0, step=by)
    return row if isinstance(first, int) else imp.emit("add", row, count_of(imp, first))


def triangle(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0)
    diagonal = imp.numbers(node, 1, "a diagonal")[0] if imp.given(node, 1) else 0
    op = "triu" if node.integer("upper", 1) else "tril"
    if imp.type(x).dtype != "bool":
        return imp.emit(op, x, diagonal=diagonal)
    return imp.cast(imp.emit(op, imp.cast(x, "f32"), diagonal=diagonal), "bool")


def pad(imp: Importer, node: OnnxNode) -> str:
    """Widths of the axes that are named, first those in front; a negative one cuts."""
    if node.text("mode", "constant") != "constant":
        raise Unsupported(f"padding by {node.text('mode')[:20]}", "padding by a constant")
    x, widths = imp.tensor(node, 0), imp.numbers(node, 1, "a width of padding")
    rank = len(imp.type(x).shape)
    axes = imp.numbers(node, 3, "axes") if imp.given(node, 3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for at, axis in enumerate(imp.axis(axis, rank) for axis in axes):
        low, high = widths[at], widths[len(axes) + at]
        length = imp.type(x).shape[axis]
        if min(low, high) < 0 and isinstance(length, int):
            x = imp.part(x, axis, max(0, -low), length - max(0, -high))
        elif min(low, high) < 0:
            raise Unsupported(f"a part of the {length} axis", "an axis of fixed size")
        before[axis], after[axis] = max(0, low), max(0, high)
    if not any((*before, *after)):
        return x
    value = imp.number(node, 2, "a value") if imp.given(node, 2) else 0.0
    return imp.emit("pad", x, before=tuple(before), after=tuple(after), value=value)


def conv(imp: Importer, node: OnnxNode) -> str:
    x, weight = imp.tensor(node, 0, "f32"), imp.tensor(node, 1, "f32")
    rank = len(imp.type(weight).shape) - 2
    if node.text("auto_pad", "NOTSET") != "NOTSET":
        raise Unsupported("padding by name", "padding by numbers")
    pads = node.integers("pads") or [0] * 2 * rank
    if pads[:rank] != pads[rank:]:
        low, high = ((0, 0, *part) for part in (pads[:rank], pads[rank:]))
        x, pads = imp.emit("pad", x, before=low, after=high, value=0.0), [0] * 2 * rank
    steps: dict[str, Any] = {key: tuple(node.integers(f"{key}s")) or (1,) * rank for key in ("stride", "dilation")}
    out = imp.emit("conv", x, weight, **steps, padding=tuple(pads[:rank]), groups=node.integer("group", 1))
    if not imp.given(node, 2):
        return out
    bias = imp.tensor(node, 2, "f32")
    return imp.emit("add", out, imp.reshape(bias, (*imp.type(bias).shape, *(1,) * rank)))

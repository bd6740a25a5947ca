"""ATen ops that pick, place, order or slide along axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from ferrum.graphs.dims import Dim, floor_divide, multiply
from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.frontend.aten import LARGE, Handler, arguments, number, whole
from ferrum.graphs.frontend.builder import Unsupported, between, count_of, every, places_of_several, top
from ferrum.graphs.frontend.sizes import product
from ferrum.graphs.frontend.uniform import uniform
from ferrum.graphs.ir import Param

if TYPE_CHECKING:
    from ferrum.graphs.frontend.torch_export import Importer


def places(imp: Importer, arg: Any, size: Dim) -> str:
    """An integer tensor of places along an axis of ``size``, counted from its start."""
    name = imp.tensor(arg)
    if imp.type(name).dtype not in ("i32", "i64"):
        raise Unsupported("an index of truth values", "torch.where")
    param = imp.scope.params.get(name)
    if param is None or param.data is None or not isinstance(size, int) or (param.data >= 0).all():
        return name
    return imp.scope.add_param(Param(param.value, Constant(param.data % size)))


def taken(imp: Importer, x: str, at: str, axis: int) -> str:
    """The places ``at`` of an axis; those that are known and follow each other are a slice."""
    param = imp.scope.params.get(at)
    known = param.data if param is not None and param.data is not None and param.data.ndim == 1 else None
    fixed = isinstance(imp.type(x).shape[axis], int)
    if fixed and known is not None and len(known) and (known == known[0] + np.arange(len(known))).all():
        return imp.part(x, axis, int(known[0]), int(known[0]) + len(known))
    return imp.emit("take", x, at, axis=axis)


def cumsum(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    return imp.emit("cumsum", imp.cast(imp.tensor(args["self"]), imp.dtype(node)), axis=imp.axis(args["self"], args["dim"]))


def topk(imp: Importer, node: fx.Node) -> tuple[str, ...]:
    args = arguments(node)
    x, axis = imp.cast(imp.tensor(args["self"]), "f32"), imp.axis(args["self"], args["dim"])
    return top(imp, x, axis, whole(args["k"], "a count"), bool(args["largest"]))


def sort(imp: Importer, node: fx.Node) -> tuple[str, ...]:
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    values, at = imp.scope.add("sort", (x,), None, "", {"axis": axis, "descending": bool(args["descending"])})
    return values, imp.cast(at, "i64")


def argsort(imp: Importer, node: fx.Node) -> str:
    return sort(imp, node)[1]


def extreme(op: str, both: bool) -> Handler:
    """The largest (or smallest) along an axis and where it is; of equal ones the first."""

    def handler(imp: Importer, node: fx.Node) -> str | tuple[str, ...]:
        args = arguments(node)
        x = imp.cast(imp.tensor(args["self"]), "f32")
        shape = imp.type(x).shape
        if args["dim"] is None:
            x, axis = imp.reshape(x, (multiply(*shape),)), 0
        else:
            axis = imp.axis(args["self"], args["dim"])
        values, at = top(imp, x, axis, 1, op == "max")
        if not both:
            return imp.reshape(at, imp.shape(node))
        shapes = [imp.shape_of(value) for value in node.meta["val"]]
        values = imp.cast(values, imp.dtype_of(node.meta["val"][0]))
        return imp.reshape(values, shapes[0]), imp.reshape(at, shapes[1])

    return handler


def gather(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    at = places(imp, args["index"], imp.type(x).shape[axis])
    return imp.emit("gather", same_but(imp, x, at, axis), at, axis=axis)


def same_but(imp: Importer, x: str, at: str, axis: int) -> str:
    """x cut to the sizes of ``at`` on all axes but one, as torch reads it."""
    for i, (size, wanted) in enumerate(zip(imp.type(x).shape, imp.type(at).shape, strict=True)):
        if i != axis and size != wanted:
            x = imp.part(x, i, 0, whole(wanted, "the size of an index"))
    return x


def scatter(op: str) -> Handler:
    def handler(imp: Importer, node: fx.Node) -> str:
        args, dtype = arguments(node), imp.dtype(node)
        x, axis = imp.cast(imp.tensor(args["self"]), dtype), imp.axis(args["self"], args["dim"])
        at = places(imp, args["index"], imp.type(x).shape[axis])
        source = args.get("src", args.get("value"))
        shape = imp.type(at).shape
        if isinstance(source, fx.Node):
            values = same_but(imp, imp.cast(imp.tensor(source), dtype), at, -1)
        else:
            values = imp.constant(number(source, "a value"), shape, dtype)
        return imp.emit(op, x, at, values, axis=axis)

    return handler


def index_select(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    return taken(imp, x, places(imp, args["index"], imp.type(x).shape[axis]), axis)


def index_add(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    source = imp.tensor(args["source"])
    if args["alpha"] != 1:
        source = imp.emit("mul_scalar", source, value=number(args["alpha"], "alpha"))
    at = imp.tensor(args["index"])
    shape = imp.type(source).shape
    wide = imp.reshape(at, tuple(n if i == axis else 1 for i, n in enumerate(shape)))
    return imp.emit("scatter_add", x, imp.emit("expand", wide, shape=shape), source, axis=axis)


def neighbours(indices: Sequence[Any]) -> tuple[int, int]:
    """[first, end) of the axes that are indexed, which must be neighbours."""
    named = [i for i, index in enumerate(indices) if index is not None]
    if named != list(range(named[0], named[-1] + 1)):
        raise Unsupported("an index on axes that are apart", "an index on neighbouring axes")
    return named[0], named[-1] + 1


def flat_places(imp: Importer, indices: Sequence[Any], sizes: Sequence[Dim]) -> str:
    """One number for each place in the axes ``sizes``, taken as one axis."""
    return places_of_several(imp, [places(imp, index, size) for index, size in zip(indices, sizes, strict=True)], sizes)


def index(imp: Importer, node: fx.Node) -> str:
    """x[.., i, j, ..]: neighbouring axes are one, from which places are taken."""
    args = arguments(node)
    x, indices = imp.tensor(args["self"]), args["indices"]
    if (number_of := uniform(imp.scope, x)) is not None:
        return imp.constant(number_of, imp.shape(node), imp.dtype(node))
    start, end = neighbours(indices)
    shape = imp.type(x).shape
    if end - start > 1:
        x = imp.reshape(x, (*shape[:start], product(list(shape[start:end])), *shape[end:]))
    return taken(imp, x, flat_places(imp, indices[start:end], shape[start:end]), start)


def index_put(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x, indices = imp.tensor(args["self"]), args["indices"]
    if len(indices) == 1 and imp.dtype(indices[0]) == "bool":
        return put_where(imp, node, x)
    start, end = neighbours(indices)
    shape = imp.type(x).shape
    if start:
        raise Unsupported("values put behind the first axis", "an index on the first axes")
    at = flat_places(imp, indices, shape[:end])
    count = imp.type(at).shape
    rows: Dim = multiply(*shape[:end])
    flat = imp.reshape(x, (rows, *shape[end:]))
    values = imp.cast(imp.tensor(args["values"]), imp.dtype(node))
    if imp.type(values).shape != (*count, *shape[end:]):
        values = imp.emit("expand", values, shape=(*count, *shape[end:]))
    number_of: Dim = multiply(*count)
    values = imp.reshape(values, (number_of, *shape[end:]))
    wide = imp.emit("expand", imp.reshape(at, (number_of, *(1 for _ in shape[end:]))), shape=(number_of, *shape[end:]))
    put = imp.emit("scatter_add" if args["accumulate"] else "scatter", flat, wide, values, axis=0)
    return imp.reshape(put, shape)


def put_where(imp: Importer, node: fx.Node, x: str) -> str:
    """x[mask] = one number."""
    args, shape = arguments(node), imp.type(x).shape
    mask, value = imp.tensor(args["indices"][0]), imp.cast(imp.tensor(args["values"]), imp.dtype(node))
    if args["accumulate"] or imp.type(value).shape not in ((), (1,)):
        raise Unsupported("several values put where a mask says", "torch.where")
    mask = imp.reshape(mask, (*imp.type(mask).shape, *(1 for _ in shape[len(imp.type(mask).shape) :])))
    return imp.emit("where", mask, imp.reshape(value, ()), x)


def flip(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x = imp.tensor(args["self"])
    for axis in args["dims"]:
        axis = imp.axis(args["self"], axis)
        size = whole(imp.type(x).shape[axis], "a reversed axis")
        x = imp.emit("take", x, imp.emit("iota", shape=(size,), dtype="i64", start=size - 1, step=-1), axis=axis)
    return x


def slice_axis(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    if imp.shape(node) == imp.type(x).shape:
        return x
    if not isinstance(imp.shape(node)[axis], int):
        return cut_to_tokens(imp, node, x, axis)
    start = whole(args["start"] if args["start"] is not None else 0, "the start of a slice")
    end = whole(args["end"] if args["end"] is not None else LARGE, "the end of a slice")
    if args["step"] != 1:
        return every(imp, x, axis, start, end, args["step"])
    fixed = isinstance(imp.type(x).shape[axis], int)
    return imp.part(x, axis, start, end) if fixed else between(imp, x, axis, start, end)


def cut_to_tokens(imp: Importer, node: fx.Node, x: str, axis: int) -> str:
    """As much of an axis as there are tokens: of a table, what it says of their places."""
    args = arguments(node)
    step, start = whole(args["step"], "a step"), size_or_number(imp, args["start"] or 0)
    first = start if isinstance(start, int) else 0
    if first < 0:
        raise Unsupported("a part that is counted from the end by tokens", "a part counted from the start")
    at = imp.emit("iota", shape=(imp.shape(node)[axis],), dtype="i64", start=first, step=step)
    return imp.emit("take", x, at if isinstance(start, int) else imp.emit("add", at, count_of(imp, start)), axis=axis)


def size_or_number(imp: Importer, value: Any) -> Dim:
    made = value.meta.get("val") if isinstance(value, fx.Node) else value
    return made if isinstance(made, int) else imp.dim(made)


def placed(imp: Importer, node: fx.Node) -> str:
    """slice_scatter and select_scatter: a part of an axis is replaced."""
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    size = whole(imp.type(x).shape[axis], "an axis of which a part is replaced")
    if imp.is_empty(args["src"]):
        return x
    source = imp.cast(imp.tensor(args["src"]), imp.dtype(node))
    if "index" in args:
        start = args["index"] % size
        end = start + 1
        source = imp.reshape(source, (*imp.type(x).shape[:axis], 1, *imp.type(x).shape[axis + 1 :]))
    else:
        start, end = (LARGE if i is None else whole(i, "the end of a slice") for i in (args["start"] or 0, args["end"]))
        start, end = (max(0, min(size, i + size if i < 0 else i)) for i in (start, end))
        if args["step"] != 1:
            return put_every(imp, x, source, axis, start, end, args["step"])
    parts = [imp.part(x, axis, 0, start)] if start else []
    parts += [source, *([imp.part(x, axis, end, size)] if end < size else [])]
    return source if len(parts) == 1 else imp.emit("cat", *parts, axis=axis)


def put_every(imp: Importer, x: str, source: str, axis: int, start: int, end: int, step: int) -> str:
    shape = imp.type(source).shape
    at = imp.emit("iota", shape=(-(-(end - start) // step),), dtype="i64", start=start, step=step)
    at = imp.reshape(at, tuple(n if i == axis else 1 for i, n in enumerate(shape)))
    return imp.emit("scatter", x, imp.emit("expand", at, shape=shape), source, axis=axis)


def pad(imp: Importer, node: fx.Node) -> str:
    """Widths of the last axes, the last first; a negative one cuts."""
    args = arguments(node)
    if args.get("mode", "constant") != "constant":
        raise Unsupported(f"padding by {args['mode']}", "padding by a constant")
    x = imp.tensor(args["self"])
    rank, widths = len(imp.type(x).shape), [whole(w, "a width of padding") for w in args["pad"]]
    before, after = [0] * rank, [0] * rank
    for i, (low, high) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        before[rank - 1 - i], after[rank - 1 - i] = low, high
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if min(low, high) < 0:
            size = whole(imp.type(x).shape[axis], "an axis that is cut")
            x = imp.part(x, axis, max(0, -low), size - max(0, -high))
    value = 0.0 if args.get("value") is None else number(args["value"], "a value")
    widths_of: dict[str, Any] = {"before": tuple(max(0, n) for n in before), "after": tuple(max(0, n) for n in after)}
    return imp.emit("pad", x, **widths_of, value=value) if any(map(any, widths_of.values())) else x


def pair(value: Any, rank: int) -> tuple[int, ...]:
    values = [whole(v, "a step") for v in (value if isinstance(value, list | tuple) else [value])]
    return tuple(values * rank if len(values) == 1 else values)


def conv(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    if args.get("transposed"):
        raise Unsupported("a transposed convolution", "a convolution")
    x, weight = imp.tensor(args["input"]), imp.tensor(args["weight"])
    rank = len(imp.type(weight).shape) - 2
    if isinstance(args["padding"], str):
        raise Unsupported("padding by name", "padding by numbers")
    steps: dict[str, Any] = {key: pair(args[key], rank) for key in ("stride", "padding", "dilation")}
    out = imp.emit("conv", x, weight, **steps, groups=args["groups"])
    if args["bias"] is None:
        return out
    bias = imp.tensor(args["bias"])
    return imp.emit("add", out, imp.reshape(bias, (*imp.type(bias).shape, *(1,) * rank)))


def eye(imp: Importer, node: fx.Node) -> str:
    rows, columns = imp.shape(node)
    down, right = (imp.emit("iota", shape=(n,), dtype="i64", start=0, step=1) for n in (rows, columns))
    return imp.cast(imp.emit("eq", imp.reshape(down, (rows, 1)), right), imp.dtype(node))


def einsum(imp: Importer, node: fx.Node) -> str:
    """Two operands: letters are permuted into [shared, left, summed] and [shared, summed, right], multiplied and permuted."""
    equation, operands = node.args[0], node.args[1]
    sides = str(equation).replace(" ", "").split("->")
    letters = sides[0].split(",")
    if len(sides) != 2 or len(letters) != 2 or "." in equation or any(len(set(part)) != len(part) for part in letters):
        raise Unsupported(f"einsum of {equation}", "a product of two tensors with an arrow")
    names = [summed_alone(imp, imp.tensor(o), own, other + sides[1]) for o, own, other in
             zip(operands, letters, letters[::-1], strict=True)]  # fmt: skip
    left, right = ([c for c in own if c in other + sides[1]] for own, other in zip(letters, letters[::-1], strict=True))
    sizes = {c: n for own, name in zip((left, right), names, strict=True) for c, n in zip(own, imp.type(name).shape, strict=True)}
    shared = [c for c in left if c in right and c in sides[1]]
    summed = [c for c in left if c in right and c not in sides[1]]
    lone = [[c for c in own if c not in shared + summed] for own in (left, right)]

    def turned(name: str, own: list[str], groups: list[list[str]]) -> str:
        name = imp.emit("permute", name, order=tuple(own.index(c) for group in groups for c in group))
        return imp.reshape(name, (*(sizes[c] for c in shared), *(multiply(*(sizes[c] for c in g)) for g in groups[1:])))

    x, y = turned(names[0], left, [shared, lone[0], summed]), turned(names[1], right, [shared, summed, lone[1]])
    product = imp.emit("matmul", x, y)
    made = [*shared, *lone[0], *lone[1]]
    wide = imp.reshape(product, tuple(sizes[c] for c in made))
    return imp.emit("permute", wide, order=tuple(made.index(c) for c in sides[1]))


def summed_alone(imp: Importer, name: str, own: str, elsewhere: str) -> str:
    """The sum over axes that only this operand has."""
    for axis in reversed(range(len(own))):
        if own[axis] not in elsewhere:
            name = imp.emit("sum", name, axis=axis, keepdim=False)
    return name


def unfold(imp: Importer, node: fx.Node) -> str:
    """Windows of an axis of fixed size, as a last axis."""
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dimension"])
    size, step = whole(args["size"], "a window"), whole(args["step"], "a step")
    count = imp.shape(node)[axis]
    first = imp.emit("mul_scalar", imp.emit("iota", shape=(count,), dtype="i64", start=0, step=1), value=float(step))
    inner = imp.emit("iota", shape=(size,), dtype="i64", start=0, step=1)
    found = imp.emit("take", x, imp.emit("add", imp.reshape(first, (count, 1)), inner), axis=axis)
    order = [i for i in range(len(imp.type(found).shape)) if i != axis + 1]
    return imp.emit("permute", found, order=(*order, axis + 1))


def repeated(imp: Importer, node: fx.Node) -> str:
    """``Tensor.repeat``: an axis of length 1 widens; a longer one gets an axis of copies in front, and the two are one."""
    x, shape = imp.tensor(node.args[0]), imp.shape(node)
    x = imp.reshape(x, (1,) * (len(shape) - len(imp.type(x).shape)) + imp.type(x).shape)
    for axis, (size, wanted) in enumerate(zip(imp.type(x).shape, shape, strict=True)):
        if size not in (1, wanted):
            before, after = imp.type(x).shape[:axis], imp.type(x).shape[axis + 1 :]
            copies = (*before, floor_divide(wanted, size), size, *after)
            x = imp.emit("expand", imp.reshape(x, (*before, 1, size, *after)), shape=copies)
            x = imp.reshape(x, (*before, wanted, *after))
    return x if imp.type(x).shape == shape else imp.emit("expand", x, shape=shape)


def attend(imp: Importer, node: fx.Node) -> str:
    """Our attention function's node, on [batch, heads, seq, width]."""
    args = arguments(node)
    rows = [imp.emit("permute", imp.cast(imp.tensor(args[key]), "f32"), order=(0, 2, 1, 3)) for key in ("q", "k", "v")]
    operands = tuple(key for key in ("sinks", "bias") if args[key] is not None)
    extra = [imp.cast(imp.tensor(args[key]), "f32") for key in operands]
    rules = {key: args[key] for key in ("causal", "window", "scale", "softcap")}
    return imp.emit("attend", *rows, *extra, **rules, operands=operands)


def recur(imp: Importer, node: fx.Node) -> str:
    names = [imp.cast(imp.tensor(value), "f32") for value in arguments(node).values() if value is not None]
    return imp.emit("recur", *names, delta=len(names) == 5)


def pool(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    return imp.emit("pool", imp.cast(imp.tensor(args["x"]), "f32"), how=args["how"])


def grouped_linear(imp: Importer, node: fx.Node) -> str:
    return imp.emit("grouped_linear", *(imp.tensor(value) for value in arguments(node).values()))

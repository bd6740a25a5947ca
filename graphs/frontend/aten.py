"""Ways of importing an ATen op, one small handler each; ``aten_table`` says which op goes which way.

A handler gets the importer and an fx node and returns the name of the value that the node makes (a tuple of names for an
op with several results). It raises ``Unsupported`` for a form of the op that has no equal in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import fx

from ferrum.graphs.frontend.builder import Unsupported

if TYPE_CHECKING:
    from ferrum.graphs.frontend.torch_export import Importer

Result: TypeAlias = "str | tuple[str, ...]"
Handler: TypeAlias = Callable[["Importer", fx.Node], Result]
LARGE = 1 << 62  # torch writes "to the end" as 2**63 - 1


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments by their schema's names, defaults filled in."""
    schema = node.target._schema
    out: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        out[argument.name] = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default)
    return out


def number(value: Any, what: str) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    raise Unsupported(f"{what} that depends on the input's size", "a constant")


def whole(value: Any, what: str) -> int:
    """``value``, which may be computed of sizes if it is the same for all."""
    if isinstance(value, fx.Node):
        size = value.meta.get("val")
        expr = getattr(getattr(size, "node", None), "expr", size)
        value = int(expr) if getattr(expr, "is_Integer", isinstance(expr, int)) else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Unsupported(f"{what} that depends on the input's size", "a constant")


def identity(imp: Importer, node: fx.Node) -> str:
    return imp.tensor(node.args[0])


def dropout(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    if args["train"] and args["p"]:
        raise Unsupported("dropout in training mode", "module.eval()")
    return imp.tensor(args["input"])


def convert(imp: Importer, node: fx.Node) -> str:
    return imp.cast(imp.tensor(node.args[0]), imp.dtype(node))


def unary(op: str) -> Handler:
    def handler(imp: Importer, node: fx.Node) -> str:
        return imp.emit(op, imp.cast(imp.tensor(node.args[0]), imp.dtype(node)))

    return handler


def power(exponent: float) -> Handler:
    return lambda imp, node: imp.emit("pow_scalar", imp.tensor(node.args[0]), value=exponent)


def pow_scalar(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    exponent = number(args["exponent"], "an exponent")
    return imp.emit("pow_scalar", imp.cast(imp.tensor(args["self"]), imp.dtype(node)), value=exponent)


def pow_of_scalar(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    base = number(args["self"], "a base")
    if base <= 0:
        raise Unsupported("a power of a base that is not positive", "a positive base")
    exponent = imp.cast(imp.tensor(args["exponent"]), "f32")
    return imp.emit("exp", imp.emit("mul_scalar", exponent, value=math.log(base)))


def add(sign: float) -> Handler:
    """self + sign * alpha * other, where other may be a number."""

    def handler(imp: Importer, node: fx.Node) -> str:
        args = arguments(node)
        dtype = imp.dtype(node)
        factor = sign * number(args.get("alpha", 1), "alpha")
        x = imp.cast(imp.tensor(args["self"]), dtype)
        if not isinstance(args["other"], fx.Node):
            return imp.emit("add_scalar", x, value=factor * number(args["other"], "a summand"))
        y = imp.cast(imp.tensor(args["other"]), dtype)
        if factor in (1.0, -1.0):
            return imp.emit("add" if factor == 1.0 else "sub", x, y)
        return imp.emit("add", x, imp.emit("mul_scalar", y, value=factor))

    return handler


def reversed_sub(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    factor = number(args.get("alpha", 1), "alpha")
    x = imp.emit("mul_scalar", imp.cast(imp.tensor(args["self"]), imp.dtype(node)), value=-factor)
    if isinstance(args["other"], fx.Node):
        return imp.emit("add", imp.cast(imp.tensor(args["other"]), imp.dtype(node)), x)
    return imp.emit("add_scalar", x, value=number(args["other"], "a summand"))


def multiply(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x = imp.cast(imp.tensor(args["self"]), imp.dtype(node))
    if not isinstance(args["other"], fx.Node):
        return imp.emit("mul_scalar", x, value=number(args["other"], "a factor"))
    return imp.emit("mul", x, imp.cast(imp.tensor(args["other"]), imp.dtype(node)))


def divide(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x = imp.cast(imp.tensor(args["self"]), imp.dtype(node))
    if not isinstance(args["other"], fx.Node):
        divisor = number(args["other"], "a divisor")
        if divisor == 0:
            raise Unsupported("a division by zero")
        return imp.emit("mul_scalar", x, value=1.0 / divisor)
    return imp.emit("div", x, imp.cast(imp.tensor(args["other"]), imp.dtype(node)))


def comparison(op: str) -> Handler:
    def handler(imp: Importer, node: fx.Node) -> str:
        args = arguments(node)
        x, other = imp.tensor(args["self"]), args["other"]
        if isinstance(other, fx.Node):
            y = imp.tensor(other)
            dtype = imp.promoted(args["self"], other)
        else:
            dtype = "f32" if isinstance(other, float) else imp.type(x).dtype
            y = imp.constant(number(other, "a bound"), (), dtype)
        return imp.emit(op, imp.cast(x, dtype), imp.cast(y, dtype))

    return handler


def logical(op: str) -> Handler:
    def handler(imp: Importer, node: fx.Node) -> str:
        if any(imp.type(imp.tensor(a)).dtype != "bool" for a in node.args):
            raise Unsupported("a bit operation on numbers", "bool tensors")
        return imp.emit(op, *(imp.tensor(a) for a in node.args))

    return handler


def choose(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    dtype = imp.dtype(node)
    sides = [imp.cast(imp.tensor(a), dtype) if isinstance(a, fx.Node) else imp.constant(number(a, "a value"), (), dtype)
             for a in (args["self"], args["other"])]  # fmt: skip
    return imp.emit("where", imp.tensor(args["condition"]), *sides)


def masked_fill(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    dtype = imp.dtype(node)
    value = args["value"]
    fill = imp.cast(imp.tensor(value), dtype) if isinstance(value, fx.Node) else imp.constant(number(value, "a value"), (), dtype)
    return imp.emit("where", imp.tensor(args["mask"]), fill, imp.cast(imp.tensor(args["self"]), dtype))


def filled(value: float | None) -> Handler:
    """``value`` everywhere; None: the op's own fill value."""

    def handler(imp: Importer, node: fx.Node) -> str:
        args = arguments(node)
        fill = value if value is not None else number(args.get("fill_value", args.get("s")), "a value")
        return imp.constant(fill, imp.shape(node), imp.dtype(node))

    return handler


def arange(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    start, step = whole(args.get("start", 0), "a first position"), whole(args.get("step", 1), "a step")
    name = imp.emit("iota", shape=imp.shape(node), dtype="i64", start=start, step=step)
    return imp.cast(name, imp.dtype(node))


def triangle(op: str) -> Handler:
    def handler(imp: Importer, node: fx.Node) -> str:
        args = arguments(node)
        return imp.emit(op, imp.tensor(args["self"]), diagonal=whole(args["diagonal"], "a diagonal"))

    return handler


def reshape(imp: Importer, node: fx.Node) -> str:
    return imp.reshape(imp.tensor(node.args[0]), imp.shape(node))


def expand(imp: Importer, node: fx.Node) -> str:
    x, shape = imp.tensor(node.args[0]), imp.shape(node)
    return x if imp.type(x).shape == shape else imp.emit("expand", x, shape=shape)


def repeat_interleave(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    if args["dim"] is None:
        raise Unsupported("repeat_interleave without dim", "repeat_interleave(x, n, dim)")
    axis = imp.axis(args["self"], args["dim"])
    return imp.emit("repeat", imp.tensor(args["self"]), axis=axis, times=whole(args["repeats"], "a repeat"))


def permute(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    return imp.emit("permute", imp.tensor(args["self"]), order=tuple(imp.axis(args["self"], d) for d in args["dims"]))


def transpose(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    rank = len(imp.type(imp.tensor(args["self"])).shape)
    if rank < 2:
        return imp.tensor(args["self"])
    a, b = (imp.axis(args["self"], args.get(key, default)) for key, default in (("dim0", -2), ("dim1", -1)))
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return imp.emit("permute", imp.tensor(args["self"]), order=tuple(order))


def select(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x, axis, index = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"]), whole(args["index"], "an index")
    size = imp.type(x).shape[axis]
    if not isinstance(size, int):
        raise Unsupported(f"one element of the {size} axis", "the whole axis")
    index += size if index < 0 else 0
    return imp.reshape(imp.part(x, axis, index, index + 1), imp.shape(node))


def pieces(imp: Importer, node: fx.Node) -> tuple[str, ...]:
    """chunk, split and unbind: consecutive slices, their sizes read off the results."""
    args = arguments(node)
    x, axis = imp.tensor(args["self"]), imp.axis(args["self"], args["dim"])
    out, start = [], 0
    for value in node.meta["val"]:
        shape = imp.shape_of(value)
        size = shape[axis] if len(shape) == len(imp.type(x).shape) else 1
        if not isinstance(size, int):
            raise Unsupported("a split of an axis that depends on the input's size", "an axis of fixed size")
        out.append(imp.reshape(imp.part(x, axis, start, start + size), shape))
        start += size
    return tuple(out)


def getitem(imp: Importer, node: fx.Node) -> str:
    source, index = node.args
    names = imp.value(source)
    return names[index] if isinstance(names, tuple) else names


def cat(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    parts = [t for t in args["tensors"] if not imp.is_empty(t)]  # they add nothing
    names = [imp.cast(imp.tensor(t), imp.dtype(node)) for t in parts]
    return names[0] if len(names) == 1 else imp.emit("cat", *names, axis=imp.axis(parts[0], args["dim"]))


def stack(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    shape = imp.shape(node)
    axis = args["dim"] % len(shape)
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    return imp.emit("cat", *(imp.reshape(imp.tensor(t), one) for t in args["tensors"]), axis=axis)


def softmax(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    return imp.emit("softmax", imp.cast(imp.tensor(args["self"]), "f32"), axis=imp.axis(args["self"], args["dim"]))


def linear(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    names = [imp.tensor(args[key]) for key in ("input", "weight", "bias") if args[key] is not None]
    return imp.emit("linear", *names, has_bias=len(names) == 3, has_residual=False, activation="")


def embedding(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    return imp.emit("embedding", imp.tensor(args["indices"]), imp.tensor(args["weight"]), scale=1.0)


def gelu(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    op = {"none": "gelu", "tanh": "gelu_tanh"}[args["approximate"]]
    return imp.emit(op, imp.cast(imp.tensor(args["self"]), imp.dtype(node)))


def sdpa(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    if args["dropout_p"]:
        raise Unsupported("attention with dropout", "dropout_p=0")
    names = [imp.tensor(args[key]) for key in ("query", "key", "value", "attn_mask") if args[key] is not None]
    width = imp.type(names[0]).shape[-1]
    if not isinstance(width, int):
        raise Unsupported("a head_dim that depends on the input's size", "a constant")
    scale = number(args["scale"], "a scale") if args["scale"] is not None else width**-0.5
    return imp.emit("sdpa", *names, is_causal=bool(args["is_causal"]), scale=scale)

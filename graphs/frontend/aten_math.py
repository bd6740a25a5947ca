"""ATen ops that are a few of ours: activations, bounds, reductions over several axes, norms without a weight, products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ferrum.graphs.frontend import builder
from ferrum.graphs.frontend.aten import Handler, arguments, number
from ferrum.graphs.frontend.builder import Unsupported, centered, scalar
from ferrum.graphs.tables import NotATable, Tables

if TYPE_CHECKING:
    from ferrum.graphs.frontend.torch_export import Importer

Build = Callable[["Importer", str], str]


def own(imp: Importer, node: fx.Node, key: str = "self") -> str:
    """The tensor ``key`` in the dtype of the result."""
    return imp.cast(imp.tensor(arguments(node)[key]), imp.dtype(node))


def built(build: Build) -> Handler:
    """A function of one tensor, written in ops of ours."""
    return lambda imp, node: build(imp, own(imp, node))


def softplus(imp: Importer, node: fx.Node) -> str:
    """torch is linear above ``threshold``, where the difference is below the last bit if it is 20 or more."""
    args = arguments(node)
    beta = number(args["beta"], "beta")
    if number(args["threshold"], "a threshold") < 20:
        raise Unsupported("softplus with a threshold below 20", "the default threshold")
    inner = builder.softplus(imp, imp.emit("mul_scalar", own(imp, node), value=beta))
    return imp.emit("mul_scalar", inner, value=1.0 / beta)


def elu(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    x = own(imp, node)
    if args["scale"] != 1 or args["input_scale"] != 1:
        raise Unsupported("elu with scales", "elu")
    return builder.elu(imp, x, number(args["alpha"], "alpha"))


def leaky_relu(imp: Importer, node: fx.Node) -> str:
    return builder.leaky_relu(imp, own(imp, node), number(arguments(node)["negative_slope"], "a slope"))


def operand(imp: Importer, value: Any, dtype: str) -> str:
    """A tensor, or a number as one."""
    if isinstance(value, fx.Node):
        return imp.cast(imp.tensor(value), dtype)
    return imp.constant(number(value, "a number"), (), dtype)


def two(op: str, swapped: bool = False) -> Handler:
    """A binary op of which either side may be a number."""

    def handler(imp: Importer, node: fx.Node) -> str:
        args, dtype = list(arguments(node).values()), imp.dtype(node)
        x, y = (operand(imp, value, dtype) for value in args[:2])
        return imp.emit(op, y, x) if swapped else imp.emit(op, x, y)

    return handler


def clamp(imp: Importer, node: fx.Node) -> str:
    args, x = arguments(node), own(imp, node)
    for op, key in (("maximum", "min"), ("minimum", "max")):
        if args.get(key) is not None:
            x = imp.emit(op, x, operand(imp, args[key], imp.dtype(node)))
    return x


def divide_with_mode(imp: Importer, node: fx.Node) -> str:
    args, dtype = arguments(node), imp.dtype(node)
    if args["rounding_mode"] != "floor":
        raise Unsupported(f"a division rounded by {args['rounding_mode']}", "rounding_mode='floor'")
    return imp.emit("floor_divide", operand(imp, args["self"], dtype), operand(imp, args["other"], dtype))


def fmod(imp: Importer, node: fx.Node) -> str:
    """The remainder with the sign of the dividend."""
    args, dtype = list(arguments(node).values()), imp.dtype(node)
    x, y = (operand(imp, value, dtype) for value in args[:2])
    size = imp.emit("remainder", imp.emit("abs", x), imp.emit("abs", y))
    return imp.emit("where", imp.emit("lt", x, scalar(imp, 0.0, x)), imp.emit("neg", size), size)


def erfinv(imp: Importer, node: fx.Node) -> str:
    """Of a number that is computed of numbers."""
    x = own(imp, node)
    try:
        value = Tables(imp.scope.nodes, imp.scope.params, imp.scope.types, {}).at(x, ()) if imp.type(x).shape == () else None
    except NotATable:
        value = None
    if value is None:
        raise Unsupported("aten.erfinv.default", "silu or gelu")  # the table has no op for values
    return imp.constant(float(torch.erfinv(torch.tensor(float(value), dtype=torch.float64))), (), "f32")


def copied(imp: Importer, node: fx.Node) -> str:
    """What a tensor holds after another was copied to it."""
    source, shape = own(imp, node, "src"), imp.shape(node)
    return source if imp.type(source).shape == shape else imp.emit("expand", source, shape=shape)


def axes_of(imp: Importer, node: fx.Node) -> list[int]:
    """The axes that a reduction names, the last first; all of them if it names none."""
    args = arguments(node)
    named = args.get("dim")
    rank = len(imp.type(imp.tensor(args["self"])).shape)
    if named is None or named == []:
        return list(range(rank))[::-1]
    return sorted({axis % rank for axis in ([named] if isinstance(named, int) else named)}, reverse=True)


def reduced(op: str, dtype: str = "f32") -> Handler:
    """Over one axis after the other. ``dtype``: what is reduced in; the result gets the dtype that torch gives it."""

    def handler(imp: Importer, node: fx.Node) -> str:
        keepdim = bool(arguments(node).get("keepdim", False))
        x = imp.cast(imp.tensor(arguments(node)["self"]), dtype)
        for axis in axes_of(imp, node):
            x = imp.emit(op, x, axis=axis, keepdim=keepdim)
        return imp.cast(x, imp.dtype(node))

    return handler


def counted(op: str) -> Handler:
    """any and all: the largest and the smallest of 0 and 1."""

    def handler(imp: Importer, node: fx.Node) -> str:
        args = arguments(node)
        x = imp.tensor(args["self"])
        truth = x if imp.type(x).dtype == "bool" else imp.emit("ne", x, scalar(imp, 0.0, x))
        x = imp.cast(truth, "f32")
        for axis in axes_of(imp, node):
            x = imp.emit(op, x, axis=axis, keepdim=bool(args.get("keepdim", False)))
        return imp.emit("gt", x, scalar(imp, 0.5, x))

    return handler


def variance(imp: Importer, node: fx.Node) -> str:
    args, axes = arguments(node), axes_of(imp, node)
    x = own(imp, node)
    _, square = centered(imp, x, axes)
    sizes = [imp.type(x).shape[axis] for axis in axes]
    correction = args.get("correction", int(bool(args.get("unbiased", True))))
    correction = 1 if correction is None else correction
    if correction:
        if not all(isinstance(size, int) for size in sizes):
            raise Unsupported("a variance whose divisor depends on the input's size", "unbiased=False")
        count = math.prod(int(size) for size in sizes)
        square = imp.emit("mul_scalar", square, value=count / (count - correction))
    return imp.reshape(square, imp.shape(node))


def logsumexp(imp: Importer, node: fx.Node) -> str:
    axes = axes_of(imp, node)
    x = own(imp, node)
    highest = x
    for axis in axes:
        highest = imp.emit("max", highest, axis=axis, keepdim=True)
    total = imp.emit("exp", imp.emit("sub", x, highest))
    for axis in axes:
        total = imp.emit("sum", total, axis=axis, keepdim=True)
    return imp.reshape(imp.emit("add", imp.emit("log", total), highest), imp.shape(node))


def log_softmax(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    axis = imp.axis(args["self"], args["dim"])
    return builder.log_softmax(imp, imp.cast(imp.tensor(args["self"]), "f32"), axis)


def vector_norm(imp: Importer, node: fx.Node) -> str:
    """Of order 1, 2 or infinity: sums of absolute values, of squares, the largest absolute value."""
    args, x = arguments(node), own(imp, node)
    order = args.get("ord", args.get("p"))
    if order not in (1, 2, None, math.inf):
        raise Unsupported(f"a norm of order {order}", "ord=1, 2 or inf")
    euclidean = order in (2, None)
    x = imp.emit("pow_scalar", x, value=2.0) if euclidean else imp.emit("abs", x)
    for axis in axes_of(imp, node):
        x = imp.emit("max" if order == math.inf else "sum", x, axis=axis, keepdim=True)
    return imp.reshape(imp.emit("sqrt", x) if euclidean else x, imp.shape(node))


def layer_norm(imp: Importer, node: fx.Node) -> str:
    """Over one axis, or several: with a weight, a bias, both or none."""
    args = arguments(node)
    x, weight, bias = imp.cast(imp.tensor(args["input"]), "f32"), args["weight"], args["bias"]
    eps = number(args["eps"], "eps")
    if weight is not None and len(args["normalized_shape"]) == 1:
        names = [imp.tensor(value) for value in (args["weight"], args["bias"]) if value is not None]
        return imp.emit("layer_norm", x, *names, has_bias=len(names) == 2, eps=eps)
    rank = len(imp.type(x).shape)
    x, square = centered(imp, x, list(range(rank - len(args["normalized_shape"]), rank))[::-1])
    return affine(imp, imp.emit("mul", x, imp.emit("rsqrt", imp.emit("add_scalar", square, value=eps))), weight, bias)


def affine(imp: Importer, x: str, weight: Any, bias: Any) -> str:
    for op, value in (("mul", weight), ("add", bias)):
        if value is not None:
            x = imp.emit(op, x, imp.tensor(value))
    return x


def rms_norm(imp: Importer, node: fx.Node) -> str:
    args = arguments(node)
    eps = 1.1920928955078125e-07 if args["eps"] is None else number(args["eps"], "eps")  # torch.finfo(float32).eps
    x = imp.cast(imp.tensor(args["input"]), "f32")
    if args["weight"] is not None and len(args["normalized_shape"]) == 1:
        return imp.emit("rms_norm", x, imp.tensor(args["weight"]), eps=eps)
    square, rank = imp.emit("pow_scalar", x, value=2.0), len(imp.type(x).shape)
    for axis in range(rank - len(args["normalized_shape"]), rank):
        square = imp.emit("mean", square, axis=axis, keepdim=True)
    return affine(imp, imp.emit("mul", x, imp.emit("rsqrt", imp.emit("add_scalar", square, value=eps))), args["weight"], None)


def matmul(imp: Importer, node: fx.Node) -> str:
    """Matrices, and vectors as matrices of one row or column."""
    x, y = (imp.tensor(a) for a in node.args[:2])
    if len(imp.type(x).shape) == 1:
        x = imp.reshape(x, (1, *imp.type(x).shape))
    if len(imp.type(y).shape) == 1:
        y = imp.reshape(y, (*imp.type(y).shape, 1))
    return imp.reshape(imp.emit("matmul", x, y), imp.shape(node))


def plus_product(imp: Importer, node: fx.Node) -> str:
    """addmm and baddbmm: beta * self + alpha * (x @ y)."""
    args = arguments(node)
    _, x, y = (imp.tensor(value) for value in list(args.values())[:3])
    product = imp.emit("matmul", x, y)
    alpha, beta = (number(args[key], "a factor") for key in ("alpha", "beta"))
    if alpha != 1:
        product = imp.emit("mul_scalar", product, value=alpha)
    if beta == 0:
        return product
    term = imp.tensor(args["self"])
    return imp.emit("add", product, term if beta == 1 else imp.emit("mul_scalar", term, value=beta))

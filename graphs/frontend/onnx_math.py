"""ONNX ops that compute elements one by one, along axes, or products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ferrum.graphs.frontend import builder
from ferrum.graphs.frontend.builder import Builder, Unsupported
from ferrum.graphs.frontend.onnx_held import Empty, Held, Sizes
from ferrum.graphs.frontend.uniform import uniform
from ferrum.graphs.onnx.file import OnnxNode

if TYPE_CHECKING:
    from ferrum.graphs.frontend.onnx import Importer

Result: TypeAlias = "Held | tuple[Held, ...]"
Handler: TypeAlias = Callable[["Importer", OnnxNode], Result]
# Numbers of types of elements → ours; floats of any width are f32.
TARGETS = {1: "f32", 10: "f32", 11: "f32", 16: "f32", 6: "i32", 7: "i64", 9: "bool"}


def unary(op: str) -> Handler:
    return lambda imp, node: imp.emit(op, imp.tensor(node, 0))


def built(build: Callable[[Builder, str], str]) -> Handler:
    """A function of one tensor, written in ops of ours."""
    return lambda imp, node: build(imp, imp.tensor(node, 0))


def gelu(imp: Importer, node: OnnxNode) -> str:
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    kind = node.text("approximate", "none")
    if kind not in kinds:
        raise Unsupported(f"Gelu approximated by {kind[:40]}", "none or tanh")
    return imp.emit(kinds[kind], imp.tensor(node, 0))


def quick_gelu(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0)
    return imp.emit("mul", x, imp.emit("sigmoid", imp.emit("mul_scalar", x, value=node.floating("alpha", 1.702))))


def fast_gelu(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0)
    return imp.emit("gelu_tanh", imp.emit("add", x, imp.tensor(node, 1)) if imp.given(node, 1) else x)


def pair(imp: Importer, node: OnnxNode) -> tuple[str, str]:
    """Two operands of one type, as ONNX wants them; an integer beside a float is one too."""
    x, y = (imp.tensor(node, at) for at in (0, 1))
    dtypes = {imp.type(name).dtype for name in (x, y)}
    if len(dtypes) > 1:
        wide = next(dtype for dtype in ("f32", "i64", "i32", "bool") if dtype in dtypes)
        x, y = imp.cast(x, wide), imp.cast(y, wide)
    return x, y


def alone(imp: Importer, name: str, beside: str) -> float | None:
    """The number that ``name`` is, if it is one and leaves the shape of ``beside`` as it is."""
    shape = imp.type(name).shape
    fits = len(shape) <= len(imp.type(beside).shape) and all(dim == 1 for dim in shape)
    return uniform(imp.scope, name) if fits else None


def binary(op: str) -> Handler:
    return lambda imp, node: imp.emit(op, *pair(imp, node))


def subtract(imp: Importer, node: OnnxNode) -> str:
    x, y = pair(imp, node)
    number = alone(imp, x, y)
    if number is None:
        return imp.emit("sub", x, y)
    return imp.emit("add_scalar", imp.emit("mul_scalar", y, value=-1.0), value=number)


def divide(imp: Importer, node: OnnxNode) -> str:
    """Of integers, which are not negative here: rounded down."""
    x, y = pair(imp, node)
    if imp.type(x).dtype != "f32":
        return imp.emit("floor_divide", x, y)
    if number := alone(imp, y, x):
        return imp.emit("mul_scalar", x, value=1.0 / number)
    return imp.emit("div", x, y)


def power(imp: Importer, node: OnnxNode) -> str:
    x, y = imp.tensor(node, 0), imp.tensor(node, 1)
    exponent, base = alone(imp, y, x), alone(imp, x, y)
    if exponent is not None:
        return imp.emit("pow_scalar", x, value=exponent)
    y = imp.cast(y, "f32")
    if base is not None and base > 0:
        return imp.emit("exp", imp.emit("mul_scalar", y, value=math.log(base)))
    return imp.emit("pow", imp.cast(x, "f32"), y)


def remainder(imp: Importer, node: OnnxNode) -> str:
    if node.integer("fmod"):
        raise Unsupported("Mod with fmod", "Mod without it")
    return imp.emit("remainder", *pair(imp, node))


def folded(op: str) -> Handler:
    """Sum, Min and Max of any number of inputs."""

    def handler(imp: Importer, node: OnnxNode) -> str:
        found = imp.tensor(node, 0)
        for at in range(1, len(node.inputs)):
            found = imp.emit(op, found, imp.tensor(node, at))
        return found

    return handler


def clip(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0)
    for at, op in ((1, "maximum"), (2, "minimum")):
        if imp.given(node, at):
            x = imp.emit(op, x, imp.tensor(node, at, imp.type(x).dtype))
    return x


def leaky_relu(imp: Importer, node: OnnxNode) -> str:
    return builder.leaky_relu(imp, imp.tensor(node, 0), node.floating("alpha", 0.01))


def elu(imp: Importer, node: OnnxNode) -> str:
    return builder.elu(imp, imp.tensor(node, 0), node.floating("alpha", 1.0))


def logical(op: str) -> Handler:
    return lambda imp, node: imp.emit(op, *(imp.tensor(node, at, "bool") for at in range(len(node.inputs))))


def choose(imp: Importer, node: OnnxNode) -> str:
    condition, x, y = imp.tensor(node, 0, "bool"), imp.tensor(node, 1), imp.tensor(node, 2)
    if imp.type(x).dtype != imp.type(y).dtype:
        x, y = imp.cast(x, "f32"), imp.cast(y, "f32")
    chosen = imp.emit("where", condition, x, y)
    always = uniform(imp.scope, condition)
    picked = chosen if always is None else x if always else y
    shape = imp.type(chosen).shape
    return picked if imp.type(picked).shape == shape else imp.emit("expand", picked, shape=shape)


def not_a_number(imp: Importer, node: OnnxNode) -> str:
    """Exporters look for it behind a softmax whose row was masked whole; here each token sees itself."""
    return imp.constant(0.0, imp.type(imp.tensor(node, 0)).shape, "bool")


def convert(imp: Importer, node: OnnxNode) -> Held:
    held, number = imp.held(node, 0), node.integer("to")
    if number not in TARGETS:
        raise Unsupported(f"a cast to type {number}", "floats, int64 or bool")
    dtype = TARGETS[number]
    if isinstance(held, Sizes) and (dtype in ("i64", "i32") or (held.fixed and dtype == "bool")):
        return Sizes(held.values.astype(bool).astype(object) if dtype == "bool" else held.values, dtype)
    if isinstance(held, Empty):
        return Empty(held.shape, dtype)
    return imp.tensor(node, 0, dtype)


def like(imp: Importer, node: OnnxNode) -> Held:
    held, other = imp.held(node, 0), imp.held(node, 1)
    dtype = imp.type(other).dtype if isinstance(other, str) else other.dtype  # type: ignore[union-attr]
    return Empty(held.shape, dtype) if isinstance(held, Empty) else imp.tensor(node, 0, dtype)


# along axes


def reduced(op: str, squared: bool = False, rooted: bool = False) -> Handler:
    """Over one axis after the other; all axes if none is named."""

    def handler(imp: Importer, node: OnnxNode) -> str:
        x = imp.tensor(node, 0)
        dtype, rank = imp.type(x).dtype, len(imp.type(x).shape)
        axes = imp.axes(node, 1, rank)
        if not axes and node.integer("noop_with_empty_axes"):
            return x
        x = imp.cast(x, "f32")
        x = imp.emit("pow_scalar", x, value=2.0) if squared else x
        for axis in axes or range(rank - 1, -1, -1):
            x = imp.emit(op, x, axis=axis, keepdim=bool(node.integer("keepdims", 1)))
        return imp.cast(imp.emit("sqrt", x) if rooted else x, dtype)

    return handler


def extreme(largest: bool) -> Handler:
    """Where the largest (or smallest) along an axis is; of equal ones the first."""

    def handler(imp: Importer, node: OnnxNode) -> str:
        x = imp.tensor(node, 0, "f32")
        shape = imp.type(x).shape
        axis = imp.axis(node.integer("axis"), len(shape))
        if node.integer("select_last_index"):
            raise Unsupported("the last of equal ones", "select_last_index=0")
        at = builder.top(imp, x, axis, 1, largest)[1]
        return at if node.integer("keepdims", 1) else imp.reshape(at, (*shape[:axis], *shape[axis + 1 :]))

    return handler


def topk(imp: Importer, node: OnnxNode) -> tuple[Held, ...]:
    x = imp.tensor(node, 0, "f32")
    axis = imp.axis(node.integer("axis", -1), len(imp.type(x).shape))
    (count,) = imp.numbers(node, 1, "a count")
    return builder.top(imp, x, axis, count, bool(node.integer("largest", 1)))


def cumsum(imp: Importer, node: OnnxNode) -> str:
    if node.integer("exclusive") or node.integer("reverse"):
        raise Unsupported("a running sum that is exclusive or reversed", "CumSum without either")
    x = imp.tensor(node, 0)
    (axis,) = imp.numbers(node, 1, "an axis")
    return imp.emit("cumsum", x, axis=imp.axis(axis, len(imp.type(x).shape)))


def softmax(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0, "f32")
    return imp.emit("softmax", x, axis=imp.axis(node.integer("axis", -1), len(imp.type(x).shape)))


def log_softmax(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0, "f32")
    return builder.log_softmax(imp, x, imp.axis(node.integer("axis", -1), len(imp.type(x).shape)))


# norms


def last_axis(imp: Importer, node: OnnxNode, x: str) -> None:
    rank = len(imp.type(x).shape)
    if imp.axis(node.integer("axis", -1), rank) != rank - 1:
        raise Unsupported(f"{node.op} over several axes", "axis=-1")


def layer_norm(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0, "f32")
    last_axis(imp, node, x)
    return normed(imp, x, weight(imp, node, 1), weight(imp, node, 2), node.floating("epsilon", 1e-5))


def rms_norm(imp: Importer, node: OnnxNode) -> str:
    x = imp.tensor(node, 0, "f32")
    last_axis(imp, node, x)
    return rooted(imp, x, weight(imp, node, 1), node.floating("epsilon", 1e-5))


def weight(imp: Importer, node: OnnxNode, at: int) -> str:
    return imp.tensor(node, at, "f32") if imp.given(node, at) else ""


def normed(imp: Importer, x: str, scale: str, shift: str, eps: float) -> str:
    names = [name for name in (scale, shift) if name]
    return imp.emit("layer_norm", x, *names, has_bias=bool(shift), eps=eps)


def rooted(imp: Importer, x: str, scale: str, eps: float) -> str:
    return imp.emit("rms_norm", x, scale, eps=eps)


def skip_norm(of_root: bool) -> Handler:
    """The norm of a sum, and the sum: inputs input, skip, weight, (bias of the norm,) bias of the input."""

    def handler(imp: Importer, node: OnnxNode) -> tuple[Held, ...]:
        total = imp.emit("add", imp.tensor(node, 0, "f32"), imp.tensor(node, 1, "f32"))
        if extra := weight(imp, node, 3 if of_root else 4):
            total = imp.emit("add", total, extra)
        scale, eps = weight(imp, node, 2), node.floating("epsilon", 1e-5 if of_root else 1e-12)
        made = rooted(imp, total, scale, eps) if of_root else normed(imp, total, scale, weight(imp, node, 3), eps)
        return made, None, None, total

    return handler


# products


def matmul(imp: Importer, node: OnnxNode) -> str:
    """Matrices, and vectors as matrices of one row or column."""
    x, y = imp.tensor(node, 0, "f32"), imp.tensor(node, 1, "f32")
    left, right = imp.type(x).shape, imp.type(y).shape
    if not left or not right:
        raise Unsupported("a product of a single number", "Mul")
    x = imp.reshape(x, (1, *left)) if len(left) == 1 else x
    y = imp.reshape(y, (*right, 1)) if len(right) == 1 else y
    made = imp.emit("matmul", x, y)
    *lead, rows, columns = imp.type(made).shape
    return imp.reshape(made, (*lead, *((rows,) if len(left) > 1 else ()), *((columns,) if len(right) > 1 else ())))


def gemm(imp: Importer, node: OnnxNode) -> str:
    """alpha * (A or its transpose) @ (B or its transpose) + beta * C."""
    x, y = imp.tensor(node, 0, "f32"), imp.tensor(node, 1, "f32")
    x = imp.emit("permute", x, order=(1, 0)) if node.integer("transA") else x
    y = imp.emit("permute", y, order=(1, 0)) if node.integer("transB") else y
    found = scaled(imp, imp.emit("matmul", x, y), node.floating("alpha", 1.0))
    if not imp.given(node, 2):
        return found
    return imp.emit("add", found, scaled(imp, imp.tensor(node, 2, "f32"), node.floating("beta", 1.0)))


def scaled(imp: Importer, x: str, factor: float) -> str:
    return x if factor == 1.0 else imp.emit("mul_scalar", x, value=factor)

"""ATen ops on complex numbers, which are pairs in a graph: the real and the imaginary part along one more axis, the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import fx

from ferrum.graphs.frontend.aten import Handler, arguments, expand, identity, number, reshape
from ferrum.graphs.frontend.aten_index import slice_axis
from ferrum.graphs.frontend.builder import Unsupported

if TYPE_CHECKING:
    from ferrum.graphs.frontend.torch_export import Importer


def is_complex(value: object) -> bool:
    """Whether a node makes complex numbers."""
    made = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(made, torch.Tensor) and made.is_complex()


def parts(imp: Importer, name: str) -> tuple[str, str]:
    """Real and imaginary part, each with an axis of one."""
    axis = len(imp.type(name).shape) - 1
    return imp.part(name, axis, 0, 1), imp.part(name, axis, 1, 2)


def pairs(imp: Importer, real: str, imaginary: str) -> str:
    return imp.emit("cat", real, imaginary, axis=len(imp.type(real).shape) - 1)


def polar(imp: Importer, node: fx.Node) -> str:
    """length * (cos + i sin) of an angle."""
    args = arguments(node)
    shape = imp.shape(node)
    length, angle = (imp.reshape(imp.tensor(args[key]), (*shape[:-1], 1)) for key in ("abs", "angle"))
    return pairs(imp, *(imp.emit("mul", length, imp.emit(op, angle)) for op in ("cos", "sin")))


def multiply(imp: Importer, node: fx.Node) -> str:
    """(a + bi) (c + di), or a complex number by a real one."""
    args = arguments(node)
    factors = sorted((args["self"], args["other"]), key=lambda value: not is_complex(value))
    x = imp.tensor(factors[0])
    if not isinstance(factors[1], fx.Node):
        return imp.emit("mul_scalar", x, value=number(factors[1], "a factor"))
    y = imp.tensor(factors[1])
    if not is_complex(factors[1]):
        return imp.emit("mul", x, imp.reshape(imp.cast(y, "f32"), (*imp.type(y).shape, 1)))
    (a, b), (c, d) = parts(imp, x), parts(imp, y)
    real = imp.emit("sub", imp.emit("mul", a, c), imp.emit("mul", b, d))
    return pairs(imp, real, imp.emit("add", imp.emit("mul", a, d), imp.emit("mul", b, c)))


def sliced(imp: Importer, node: fx.Node) -> str:
    """The axis of the parts is none of theirs."""
    if arguments(node)["dim"] < 0:
        raise Unsupported("a part of complex numbers along an axis counted from the end", "an axis counted from the start")
    return slice_axis(imp, node)


COMPLEX: Mapping[str, Handler] = {
    **dict.fromkeys(
        ("aten.view_as_complex.default", "aten.view_as_real.default", "aten.clone.default", "aten.contiguous.default",
         "aten.alias.default", "aten.detach.default", "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout",
         "aten._to_copy.default"), identity,
    ),
    **dict.fromkeys(
        ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.unsqueeze.default", "aten.squeeze.dim"),
        reshape,
    ),
    "aten.expand.default": expand,
    "aten.slice.Tensor": sliced,
    "aten.polar.default": polar,
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul.Scalar"), multiply),
}  # fmt: skip

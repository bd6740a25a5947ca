"""What an operation of the graph must declare, and the words in which a fault of its use is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from ferrum.graphs.dims import Dim, multiply, substitute
from ferrum.graphs.ir import Attr, Region, Shape, Value

Inputs: TypeAlias = tuple[Value, ...]
Attrs: TypeAlias = Mapping[str, Attr]
Typed: TypeAlias = tuple[str, Shape]
Infer: TypeAlias = Callable[[Inputs, Attrs, "Value | None"], Typed]
InferAll: TypeAlias = Callable[[Inputs, Attrs, "tuple[Region, ...]"], tuple[Typed, ...]]


class OpFault(ValueError):
    """An operation that breaks its specification; the text says how."""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One operation: how many inputs, which attributes (name → kind: int, float, bool, str, ints, strs), and its result.

    ``infer`` gives the result's dtype and shape; an operation with several outputs or with regions has ``infer_all`` instead.
    ``numpy`` is its arithmetic where that is a function of the inputs' arrays, ``numpy(*arrays, **attributes)``; what needs to
    know more of a run is in ``numpy_ops.py``. ``paged`` marks the operations that the finished graph may contain, ``state``
    those that may read versions of states. ``uses`` says how elements meet, so that paging knows whether tokens do: ``pointwise``
    not at all, ``along`` one axis, ``last`` in the last axis only; what has another form is known to ``passes/page_rows.py``.
    """

    inputs: tuple[int, int]
    infer: Infer | None
    attrs: Mapping[str, str] = field(default_factory=dict)
    paged: bool = False
    state: bool = False
    infer_all: InferAll | None = None
    regions: int = 0
    uses: Literal["", "pointwise", "along", "last"] = ""
    numpy: Callable[..., NDArray[Any]] | None = None


def integer(attrs: Attrs, name: str) -> int:
    value = attrs[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise OpFault(f"attribute {name} must be an int")
    return value


def number(attrs: Attrs, name: str) -> float:
    value = attrs[name]
    if not isinstance(value, float):
        raise OpFault(f"attribute {name} must be a float")
    return value


def words(attrs: Attrs, name: str) -> tuple[str, ...]:
    value = attrs[name]
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise OpFault(f"attribute {name} must be a tuple of strings")
    return tuple(str(item) for item in value)


def axes(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    if not isinstance(value, tuple) or not all(isinstance(item, int) for item in value):
        raise OpFault(f"attribute {name} must be a tuple of ints")
    return tuple(int(item) for item in value)


def need(condition: bool, fault: str) -> None:
    if not condition:
        raise OpFault(fault)


def broadcast(a: Shape, b: Shape) -> Shape:
    """The broadcast of two shapes, aligned at the right as in numpy."""
    rank = max(len(a), len(b))
    left: Shape = (1,) * (rank - len(a)) + a
    right: Shape = (1,) * (rank - len(b)) + b
    out: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        need(x == y or x == 1 or y == 1, f"shapes {show(a)} and {show(b)} do not broadcast")
        out.append(y if x == 1 else x)
    return tuple(out)


def count(shape: Shape) -> Dim:
    """Number of elements; ``tokens`` is batch times seq."""
    return multiply(*(substitute(dim, {"tokens": multiply("batch", "seq")}) for dim in shape))


def axis_of(attrs: Attrs, shape: Shape, name: str = "axis") -> int:
    axis = integer(attrs, name)
    need(0 <= axis < len(shape), f"{name} {axis} is outside of rank {len(shape)}")
    return axis


def show(shape: Shape) -> str:
    """``['tokens', 8]``"""
    return "[" + ", ".join(repr(dim) if isinstance(dim, str) else str(dim) for dim in shape) + "]"


def declared_shape(declared: Value | None) -> Value:
    if declared is None:
        raise OpFault("needs a declared output")
    return declared

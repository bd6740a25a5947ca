"""What an importer of ONNX holds under a name of the file: a value of the graph, numbers that are known, or nothing at all.

ONNX computes shapes with the ops that compute everything else. Integers that follow from sizes are kept as sizes, whether numbers
or not, until something needs a value; so shapes come out as the graph writes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.dims import Dim, add, floor_divide, from_terms, largest, multiply, smallest, subtract, terms_of
from ferrum.graphs.expressions.evaluate import FLOATS, to_float
from ferrum.graphs.frontend.builder import Unsupported
from ferrum.graphs.ir import Shape
from ferrum.graphs.onnx.file import OnnxNode
from ferrum.graphs.onnx.tensors import OnnxTensor
from ferrum.graphs.onnx.wire import Malformed
from ferrum.graphs.op_spec import count

MAX_SIZES = 1 << 10  # elements
LARGEST = 1 << 62
Dims: TypeAlias = NDArray[np.object_]


@dataclass(frozen=True)
class Sizes:
    """Integers or truth values that are known, or that are sizes of axes."""

    values: Dims
    dtype: str = "i64"

    @property
    def fixed(self) -> bool:
        return all(isinstance(value, int) for value in self.values.flat)


@dataclass(frozen=True)
class Empty:
    """A tensor without elements: what a sequence has behind it when it begins."""

    shape: Shape
    dtype: str


Held: TypeAlias = "str | Sizes | Empty | None"  # None: nothing that a graph can hold; its maker has been reported


def sizes(values: Any, dtype: str = "i64") -> Sizes:
    array = np.empty(np.shape(values), object)
    array[...] = values
    return Sizes(array, dtype)


def shape_as_sizes(shape: Shape) -> Sizes:
    array = np.empty(len(shape), object)
    array[:] = shape
    return Sizes(array)


def as_tokens(dim: Dim) -> Dim:
    """Batch times seq goes by its name."""
    found: list[Dim] = []
    for mono, factor in terms_of(dim).items():
        rest = list(mono)
        joined = "batch" in rest and "seq" in rest
        if joined:
            rest.remove("batch")
            rest.remove("seq")
        found.append(multiply("tokens" if joined else 1, from_terms({tuple(rest): factor})))
    return add(*found)


def product(dims: Iterable[Dim]) -> Dim:
    return as_tokens(multiply(*dims))


def quotient(a: Dim, b: Dim) -> Dim:
    return as_tokens(floor_divide(count((a,)), count((b,))))


def bounded(value: Dim) -> Dim:
    if isinstance(value, int) and abs(value) > LARGEST:
        raise Unsupported("sizes that no tensor has")
    return value


def ordered(test: Callable[[int], bool]) -> Callable[[Dim, Dim], bool]:
    """A comparison of sizes, which are 1 or more, by their difference. Raises Unsupported where it depends on them."""

    def compare(a: Dim, b: Dim) -> bool:
        gap = subtract(a, b)
        if not isinstance(gap, int):
            signs = {factor > 0 for factor in terms_of(gap).values()}
            if len(signs) != 1:
                raise Unsupported("a comparison of sizes that depends on them", "sizes without conditions")
            gap = sum(terms_of(gap).values())  # as near to 0 as it comes
        return test(gap)

    return compare


ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Add": add,
    "Sub": subtract,
    "Mul": lambda a, b: product([a, b]),
    "Div": quotient,
    "Min": smallest,
    "Max": largest,
    "Neg": lambda a: multiply(-1, a),
    "Equal": ordered(lambda gap: gap == 0),
    "Greater": ordered(lambda gap: gap > 0),
    "GreaterOrEqual": ordered(lambda gap: gap >= 0),
    "Less": ordered(lambda gap: gap < 0),
    "LessOrEqual": ordered(lambda gap: gap <= 0),
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Not": lambda a: not a,
    "Where": lambda c, a, b: a if c else b,
}
_TRUTH = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"})


def axes_given(node: OnnxNode, given: list[Dims], at: int = 1) -> list[int]:
    """The axes that a node names: an input of newer opsets, an attribute of older ones."""
    if len(given) > at:
        return [int(axis) for axis in given[at].flat]
    return node.integers("axes")


def _unsqueezed(node: OnnxNode, given: list[Dims]) -> Dims:
    axes = axes_given(node, given)
    return np.expand_dims(given[0], tuple(axes))


def _squeezed(node: OnnxNode, given: list[Dims]) -> Dims:
    axes = axes_given(node, given)
    return np.squeeze(given[0], tuple(axes) or None)


def _gathered(node: OnnxNode, given: list[Dims]) -> Dims:
    return np.asarray(given[0].take(given[1].astype(np.int64), axis=node.integer("axis")), object)


def _sliced(node: OnnxNode, given: list[Dims]) -> Dims | None:
    rows = [[int(i) for i in part.flat] for part in given[1:]]
    axes = rows[2] if len(rows) > 2 else range(len(rows[0]))
    steps = rows[3] if len(rows) > 3 else [1] * len(rows[0])
    cut = [slice(None)] * given[0].ndim
    for axis, start, end, step in zip(axes, rows[0], rows[1], steps, strict=True):
        cut[axis] = slice(start, end if step > 0 or end >= -(1 << 31) else None, step)
    return given[0][tuple(cut)]


def _joined(node: OnnxNode, given: list[Dims]) -> Dims:
    return np.concatenate(given, axis=node.integer("axis"))


def _reshaped(node: OnnxNode, given: list[Dims]) -> Dims | None:
    shape = [int(size) for size in given[1].flat]
    return None if 0 in shape else given[0].reshape(shape)


def filling(node: OnnxNode) -> NDArray[Any]:
    """What ConstantOfShape fills a shape with: one element."""
    value = node.attributes.get("value")
    if value is None:
        return np.zeros(1, np.float32)
    if not isinstance(value, OnnxTensor) or math.prod(value.shape) != 1:
        raise Malformed("has a value that is not one number")
    return np.asarray(to_float(value.array(), value.dtype) if value.dtype in FLOATS else value.array()).reshape(1)


def _filled(node: OnnxNode, given: list[Dims]) -> Dims | None:
    array = filling(node)
    shape = tuple(given[0].flat)
    if array.dtype.kind not in "iu" or not all(isinstance(dim, int) for dim in shape) or np.prod(shape) > MAX_SIZES:
        return None
    return np.full([int(dim) for dim in shape], int(array[0]), object)


def _widened(node: OnnxNode, given: list[Dims]) -> Dims | None:
    shape = tuple(given[1].flat)
    if not all(isinstance(dim, int) for dim in shape) or np.prod([int(dim) for dim in shape]) > MAX_SIZES:
        return None
    return np.broadcast_to(given[0], np.broadcast_shapes(given[0].shape, tuple(int(dim) for dim in shape)))


def _counted(node: OnnxNode, given: list[Dims]) -> Dims | None:
    values = [value.reshape(()).item() for value in given]
    if not all(isinstance(value, int) for value in values) or values[2] == 0:
        return None
    numbers = range(*values)
    return np.array([*numbers], object) if 0 < len(numbers) <= MAX_SIZES else None


def _reduced(fold: Callable[..., Any]) -> Callable[[OnnxNode, list[Dims]], Dims | None]:
    def reduce(node: OnnxNode, given: list[Dims]) -> Dims | None:
        if given[0].ndim != 1:
            return None
        value = np.empty((1,) if node.integer("keepdims", 1) else (), object)
        value[...] = fold(list(given[0]))
        return value

    return reduce


FORM: Mapping[str, Callable[[OnnxNode, list[Dims]], Dims | None]] = {
    "Identity": lambda node, given: given[0],
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Gather": _gathered,
    "Slice": _sliced,
    "Concat": _joined,
    "Reshape": _reshaped,
    "ConstantOfShape": _filled,
    "Expand": _widened,
    "Range": _counted,
    "ReduceProd": _reduced(product),
    "ReduceSum": _reduced(lambda values: add(*values)),
    "ReduceMax": _reduced(lambda values: largest(*values)),
}


OF_SIZES = frozenset({*ARITHMETIC, *FORM})


def computed(node: OnnxNode, given: list[Sizes]) -> Sizes | None:
    """What ``node`` makes of sizes, as sizes; None: a value has to be computed. Raises Unsupported."""
    arrays = [one.values for one in given]
    if any(array.size > MAX_SIZES for array in arrays):
        return None
    try:
        if node.op in ARITHMETIC:
            function = np.frompyfunc(ARITHMETIC[node.op], len(arrays), 1)
            made = np.asarray(function(*arrays), object)
            for value in made.flat:
                bounded(value)
            return Sizes(made, "bool" if node.op in _TRUTH else given[-1].dtype)
        found = FORM[node.op](node, arrays) if node.op in FORM else None
    except (ValueError, TypeError, IndexError, KeyError) as error:
        if not all(one.fixed for one in given):
            return None
        raise Unsupported(f"{node.op} of shapes that do not fit: {str(error)[:80]}") from error
    return None if found is None or found.size > MAX_SIZES else Sizes(np.asarray(found, object), given[0].dtype)

"""Kernels over arrays of any shape, as they are chosen for single nodes, against the ops' numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.codegen.moves import MOVES
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS
from ferrum.graphs.dims import evaluate, multiply
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.interpret import interpret
from ferrum.graphs.ir import Graph, Node, Param, Shape, Value
from ferrum.graphs.ops import infer
from tests.codegen import kernel_harness
from tests.codegen.kernel_harness import run_graph

HERE = [t for t in TARGETS if runs_here(t.arch, t.requires)]
SETTINGS = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
FEW, MANY = settings(SETTINGS, max_examples=2), settings(SETTINGS, max_examples=16)  # the first is the smallest that there is
SIZES = st.sampled_from([1, 2, 3, 5, 8, 17])
AXES = st.lists(SIZES, min_size=0, max_size=2)


@dataclass
class Sketch:
    """A graph of independent nodes under construction; values are inputs or, where the graph would have them so, weights."""

    tokens: int
    random: np.random.Generator
    inputs: list[Value] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def floats(self, shape: Shape, stored: bool = False, distinct: int = 0) -> Value:
        """Normal numbers; with ``distinct`` few whole ones, so that some are equal."""
        size = tuple(evaluate(dim, {"tokens": self.tokens}) for dim in shape)
        data = self.random.normal(size=size) if not distinct else self.random.integers(-distinct, distinct, size)
        return self.given(Value(f"x{len(self.arrays)}", "f32", shape), data.astype(np.float32), stored)

    def places(self, shape: Shape, count: int) -> Value:
        size = tuple(evaluate(dim, {"tokens": self.tokens}) for dim in shape)
        return self.given(
            Value(f"x{len(self.arrays)}", "i32", shape), self.random.integers(0, count, size).astype(np.int32), False
        )

    def given(self, value: Value, data: NDArray[Any], stored: bool) -> Value:
        self.arrays[value.name] = data
        if stored:
            self.params.append(Param(value, Tensor(value.name, tuple(data.shape))))
            self.weights[value.name] = data
        else:
            self.inputs.append(value)
        return value

    def add(self, op: str, *values: Value, shape: Shape | None = None, **attrs: Any) -> Value:
        """The first output; ``shape`` is that of an op which does not follow from its inputs."""
        name = f"y{len(self.nodes)}"
        types = infer(op, values, attrs, () if shape is None else (Value(name, values[0].dtype, shape),))
        outputs = tuple(Value(f"{name}.{i}", *typed) for i, typed in enumerate(types))
        self.nodes.append(Node(op, tuple(value.name for value in values), outputs, attrs))
        return outputs[0]

    def turned(self, value: Value, order: Sequence[int]) -> Value:
        """The same array, whose axes lie in another order."""
        back = tuple(order.index(axis) for axis in range(len(order)))
        data = self.arrays.pop(value.name)
        self.arrays[value.name] = data.transpose(order)
        self.inputs[self.inputs.index(value)] = replace(value, shape=tuple(value.shape[axis] for axis in order))
        return self.add("permute", self.inputs[-1], order=back)

    def graph(self) -> Graph:
        """What is only moved is no output: it is not stored."""
        outputs = tuple(value.name for node in self.nodes if node.op not in MOVES for value in node.outputs)
        return Graph("alone", tuple(self.inputs), tuple(self.params), tuple(self.nodes), outputs)


def shape_of(draw: st.DrawFn, tokens: bool = True) -> Shape:
    """Any rank up to five, the axis of rows anywhere in it."""
    rows = multiply("tokens", draw(st.sampled_from([1, 1, 3])))
    return (*draw(AXES), *((rows,) if tokens else ()), *draw(AXES), draw(SIZES))


def fixed_axis(draw: st.DrawFn, shape: Shape) -> int:
    return draw(st.sampled_from([axis for axis, size in enumerate(shape) if isinstance(size, int)]))


def indices(draw: st.DrawFn, s: Sketch) -> None:
    """take, gather and scatter along a fixed axis."""
    shape = shape_of(draw)
    axis = fixed_axis(draw, shape)
    places = (*shape[:axis], draw(SIZES), *shape[axis + 1 :])
    at = s.places(places, int(shape[axis]))
    x = s.floats(shape)
    if draw(st.booleans()):
        x = s.turned(x, draw(st.permutations(range(len(shape)))))
    s.add("gather", x, at, axis=axis)
    put = draw(st.sampled_from(["scatter", "scatter_add"]))
    s.add(put, x, at, s.floats(places), axis=axis)
    table = s.floats((draw(SIZES), *draw(AXES), 2), stored=True)
    s.add("take", table, s.places(("tokens", *draw(AXES)), int(table.shape[0])), axis=0)
    s.add("gather", table, s.places(("tokens", *map(int, table.shape[1:])), int(table.shape[0])), axis=0)
    s.add("take", x, s.places((draw(SIZES),), int(shape[axis])), axis=axis)
    s.add("take", s.places(shape, 9), s.places((draw(SIZES),), int(shape[axis])), axis=axis)


def ordered(draw: st.DrawFn, s: Sketch) -> None:
    shape = (*shape_of(draw), draw(st.sampled_from([1, 4, 33, 100])))
    s.add("topk", s.floats(shape, distinct=draw(st.sampled_from([0, 3]))), k=draw(st.integers(1, int(shape[-1]))))
    shape = (*shape, *draw(AXES))
    axis = fixed_axis(draw, shape)
    s.add("sort", s.floats(shape, distinct=draw(st.sampled_from([0, 3]))), axis=axis, descending=draw(st.booleans()))
    s.add("sort", s.places(shape, 5), axis=axis, descending=draw(st.booleans()))


def summed(draw: st.DrawFn, s: Sketch) -> None:
    shape = (*shape_of(draw), draw(st.sampled_from([1, 70])))
    for value in (s.floats(shape), s.places(shape, 5)):
        s.add("cumsum", value, axis=fixed_axis(draw, shape))


def products(draw: st.DrawFn, s: Sketch) -> None:
    batch, (m, k, n) = shape_of(draw), draw(st.permutations([draw(SIZES), draw(SIZES), draw(st.sampled_from([1, 70, 130]))]))
    cut = draw(st.integers(0, len(batch)))
    narrow = tuple(1 if draw(st.booleans()) else size for size in batch)[cut:]
    one, other = draw(st.permutations([batch, narrow]))
    a, b = s.floats((*one, m, k)), s.floats((*other, k, n))
    if draw(st.booleans()):
        b = s.turned(b, draw(st.permutations(range(len(b.shape)))))
    s.add("matmul", a, b)
    s.add("matmul", a, s.turned(s.floats((*other, k, n)), (*range(len(other)), len(other) + 1, len(other))))
    s.add("matmul", s.floats(("tokens", k)), s.floats((k, n), stored=True))


def convolutions(draw: st.DrawFn, s: Sketch) -> None:
    groups, rank = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 1, 2]))
    channels, out = groups * draw(st.sampled_from([1, 3])), groups * draw(st.sampled_from([1, 2]))
    width = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    steps = {
        name: tuple(draw(st.integers(low, 2)) for _ in width) for name, low in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    places = [d * (w - 1) + 1 + draw(st.integers(0, 40)) for w, d in zip(width, steps["dilation"], strict=True)]
    x, weight = s.floats(("tokens", channels, *places)), s.floats((out, channels // groups, *width), stored=True)
    s.add("conv", x, weight, **steps, groups=groups)


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    s = Sketch(draw(st.sampled_from([1, 2, 9, 30])), np.random.default_rng(draw(st.integers(0, 1000))))
    for part in (indices, ordered, summed, products, convolutions):
        part(draw, s)
    return s


def agree(graph: Graph, found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]], limit: float = 2e-5) -> None:
    for node in graph.nodes:
        for value in node.outputs if node.op not in MOVES else ():
            scale = max(1.0, float(np.abs(wanted[value.name]).max(initial=0)))
            np.testing.assert_allclose(found[value.name], wanted[value.name], rtol=0, atol=limit * scale, err_msg=str(node))
            if value.dtype != "f32" or node.op in ("take", "gather", "sort", "topk"):
                np.testing.assert_array_equal(found[value.name], wanted[value.name], str(node))


def check(s: Sketch, target: Any) -> None:
    graph = s.graph()
    found, laid_out, stored = run_graph(graph, s.arrays, s.weights, target)
    agree(graph, found, interpret(laid_out, s.arrays, stored))


@FEW
@given(sketches())
def test_arrays(s: Sketch) -> None:
    check(s, HERE[-1])


@pytest.mark.slow
@MANY
@given(sketches(), st.sampled_from(HERE))
def test_more_arrays(s: Sketch, target: Any) -> None:
    check(s, target)


def test_bits_are_those_of_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Sketch(21, np.random.default_rng(0))
    s.add("matmul", s.floats(("tokens", 9, 70)), s.floats(("tokens", 70, 65)))
    s.add("cumsum", s.floats(("tokens", 7, 130)), axis=1)
    at = s.places(("tokens", 40, 3), 5)
    s.add("scatter_add", s.floats(("tokens", 5, 3)), at, s.floats(at.shape), axis=1)
    x, weight = s.floats(("tokens", 4, 50)), s.floats((6, 2, 4), stored=True)
    s.add("conv", x, weight, stride=(2,), padding=(1,), dilation=(1,), groups=2)
    expected, _, _ = run_graph(s.graph(), s.arrays, s.weights, HERE[-1])
    for threads in (1, 3):
        monkeypatch.setattr(kernel_harness, "THREADS", threads)
        found, _, _ = run_graph(s.graph(), s.arrays, s.weights, HERE[-1])
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_places_outside_are_the_nearest_inside() -> None:
    """A number that a model computes wrongly reads nothing but the array."""
    s = Sketch(1, np.random.default_rng(0))
    at = s.given(Value("at", "i32", ("tokens", 4)), np.array([[-1, -50, 50, 1]], np.int32), False)
    x = s.floats(("tokens", 3))
    s.add("gather", x, at, axis=1)
    s.add("take", s.floats((3, 2), stored=True), at, axis=0)
    found, _, _ = run_graph(s.graph(), s.arrays, s.weights, HERE[-1])
    np.testing.assert_array_equal(found["y0.0"][0], s.arrays[x.name][0][[2, 0, 2, 1]])
    np.testing.assert_array_equal(found["y1.0"][0], s.weights["x2"][[2, 0, 2, 1]])

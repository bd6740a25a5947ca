"""Generic kernels of CPUs against the interpreter: graphs of drawn ops over drawn shapes, compiled and run in any rows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ferrum.codegen.kernels.elements import EITHER, FLOATS, INTS, expression, literal
from ferrum.codegen.kernels.map.body import Part, merged
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS, Target
from ferrum.codegen.views import permuted, reshaped, sliced, whole
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.infer_region import ELEMENT_OPS
from ferrum.graphs.ir import Graph, Node, Param, Value
from ferrum.graphs.passes import fuse_maps
from ferrum.graphs.rewrite import Scope
from ferrum.graphs.verify import verify
from tests.codegen.small_graphs import Compiled

HERE = [t for t in TARGETS if runs_here(t.arch, t.requires)]
VOCAB = 40
Make = Callable[[Graph, dict[str, np.ndarray]], Compiled]  # a graph's code, with its weights
# What a function is asked about where it is defined, and far from there.
DOMAIN: dict[str, tuple[float, float]] = {
    "log": (1e-6, 50.0), "log1p": (-0.99, 50.0), "sqrt": (0.0, 50.0), "rsqrt": (0.01, 50.0), "reciprocal": (0.1, 9.0),
    "pow_scalar": (0.1, 4.0), "pow": (0.1, 4.0), "exp": (-100.0, 80.0), "cos": (-50.0, 50.0), "sin": (-50.0, 50.0),
}  # fmt: skip
# Rounding decides on which side of a step of these an input lies.
JUMPS = frozenset({"floor", "floor_divide", "remainder"})


def draw_settings(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip


def table_graph(width: int, build: Callable[[Scope, str], str]) -> Graph:
    """Rows [tokens, width] of a table, what ``build`` makes of them, and the pass that makes maps."""
    params = [Param(Value("table", "f32", (VOCAB, width)), Tensor("table", (VOCAB, width)))]
    given_ = (Value("tokens", "i32", ("tokens",)), Value("positions", "i32", ("tokens",)))
    s = Scope(Graph("drawn", given_, tuple(params), (), ()), ())
    s.root = Node("drawn", (), (Value("drawn", "f32", ()),))
    out = build(s, s.emit_as("rows", "embedding", "tokens", "table", scale=1.0))
    graph = Graph("drawn", given_, tuple(s.params.values()), tuple(s.nodes.values()), (out,))
    return fuse_maps.run(verify(graph))


class Draw:
    """Ops over values ``[tokens, ..]`` (the axis of tokens may move), whose elements stay in a range."""

    def __init__(self, data: st.DataObject, s: Scope) -> None:
        self.draw, self.s = data.draw, s

    def number(self, low: float = -2.0, high: float = 2.0) -> float:
        return self.draw(st.integers(-8, 8)) / 8 * (high - low) / 2 + (high + low) / 2

    def within(self, name: str, low: float, high: float) -> str:
        """The same squeezed between two numbers, smoothly."""
        half = self.s.emit("mul_scalar", self.s.emit("tanh", name), value=(high - low) / 2)
        return self.s.emit("add_scalar", half, value=(high + low) / 2)

    def step(self, name: str) -> str:
        kinds = [self.unary, self.binary, self.move] * 2 + [self.choose, self.along, self.weight, self.place]
        return self.draw(st.sampled_from(kinds))(name)

    def unary(self, name: str) -> str:
        op = self.draw(st.sampled_from(sorted(op for op in FLOATS.keys() - JUMPS if "{1}" not in FLOATS[op]) + ["pow_scalar"]))
        low, high = DOMAIN.get(op, (-6.0, 6.0))
        value = {"value": self.draw(st.sampled_from([2.0, 3.0, 0.5, -0.5, -1.0, 1.7]))} if op.endswith("scalar") else {}
        found = self.s.emit(op, self.within(name, low, high), **value)
        return self.within(found, -3.0, 3.0) if op in ("exp", "expm1", "pow_scalar", "rsqrt", "reciprocal") else found

    def binary(self, name: str) -> str:
        op = self.draw(st.sampled_from(sorted(op for op in FLOATS.keys() - JUMPS if "{1}" in FLOATS[op])))
        shape = self.s.shape(name)
        axis = self.draw(st.integers(0, len(shape) - 1))
        other = self.within(name, 0.6, 2.0)
        if shape[axis] != "tokens" and self.draw(st.booleans()):
            other = self.s.emit("max", other, axis=axis, keepdim=True)
        first = self.within(name, *DOMAIN.get(op, (-3.0, 3.0)))
        return self.within(self.s.emit(op, first, other), -2.0, 2.0)

    def choose(self, name: str) -> str:
        """Reflected at a number: two roundings of a value on either side of it are still neighbours afterwards."""
        edge = self.number()
        low = self.s.emit("lt", name, self.s.emit("full", shape=(1,), dtype="f32", value=edge))
        both = self.s.emit("or", low, self.s.emit("not", self.s.emit("cast", name, dtype="bool")))
        reflected = self.s.emit("add_scalar", self.s.emit("neg", name), value=2 * edge)
        return self.s.emit("where", both, self.s.emit("where", low, reflected, name), name)

    def place(self, name: str) -> str:
        """Something with the places of the tokens."""
        shape = self.s.shape(name)
        at = self.s.emit("reshape", "positions", shape=tuple("tokens" if dim == "tokens" else 1 for dim in shape))
        seven = self.s.emit("full", shape=(), dtype="i32", value=7.0)
        odd = self.s.emit("remainder", self.s.emit("add_scalar", at, value=3.0), seven)
        return self.s.emit("mul", name, self.s.emit("mul_scalar", self.s.emit("cast", odd, dtype="f32"), value=0.25))

    def weight(self, name: str) -> str:
        shape = tuple(dim if dim != "tokens" else 1 for dim in self.s.shape(name)[self.draw(st.integers(0, 1)) :])
        number = len(self.s.params)
        stored = self.s.add_param(Param(Value(f"w{number}", "f32", shape), Tensor(f"w{number}", shape)))
        return self.s.emit(self.draw(st.sampled_from(["mul", "add"])), name, stored)

    def along(self, name: str) -> str:
        axes = [axis for axis, dim in enumerate(self.s.shape(name)) if dim != "tokens"]
        axis = self.draw(st.sampled_from(axes))
        match self.draw(st.sampled_from(["softmax", "mean", "sum", "max", "min"])):
            case "softmax":
                return self.s.emit("softmax", name, axis=axis)
            case op:
                keep = len(axes) == 1 or self.draw(st.booleans())
                return self.s.emit(op, name, axis=axis, keepdim=keep)

    def move(self, name: str) -> str:
        shape = self.s.shape(name)
        axes = [axis for axis, dim in enumerate(shape) if dim != "tokens"]
        axis = self.draw(st.sampled_from(axes))
        size = int(shape[axis])  # type: ignore[arg-type]
        match self.draw(st.sampled_from(["permute", "slice", "split", "cat", "reshape", "repeat", "expand", "pad"])):
            case "permute":
                return self.s.emit("permute", name, order=tuple(self.draw(st.permutations(range(len(shape))))))
            case "slice":
                start = self.draw(st.integers(0, size - 1))
                return self.s.emit("slice", name, axis=axis, start=start, end=self.draw(st.integers(start + 1, size)))
            case "split" if size > 1:
                first, second = self.s.add("split", (name,), None, "", {"axis": axis, "sizes": (1, size - 1)})
                return self.s.emit("cat", second, first, second, axis=axis)
            case "cat":
                return self.s.emit("cat", name, self.s.emit("neg", name), axis=axis)
            case "reshape" if axis + 1 in axes:
                joined = (*shape[:axis], size * int(shape[axis + 1]), *shape[axis + 2 :])  # type: ignore[arg-type]
                return self.s.emit("reshape", name, shape=joined)
            case "repeat" if math.prod(int(shape[a]) for a in axes) < 300:  # type: ignore[arg-type]
                return self.s.emit("repeat", name, axis=axis, times=self.draw(st.integers(1, 3)))
            case "expand" if size == 1:
                return self.s.emit("expand", name, shape=(*shape[:axis], 3, *shape[axis + 1 :]))
            case "pad":
                widths = [tuple(self.draw(st.integers(0, 2)) if a == axis else 0 for a in range(len(shape))) for _ in range(2)]
                return self.s.emit("pad", name, before=widths[0], after=widths[1], value=0.5)
        factor = next((f for f in (2, 3, 5) if size % f == 0), 1)
        return self.s.emit("reshape", name, shape=(*shape[:axis], factor, size // factor, *shape[axis + 1 :]))


def drawn(data: st.DataObject, steps: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of so many ops, and its weights."""
    width = data.draw(st.sampled_from([1, 6, 8, 30, 60]))

    def build(s: Scope, name: str) -> str:
        made = Draw(data, s)
        for _ in range(steps):
            name = made.step(name)
        return str(s.emit("mul_scalar", name, value=1.5))

    graph = table_graph(width, build)
    random = np.random.default_rng(width)
    return graph, {p.name: random.normal(size=p.shape).astype(np.float32) for p in graph.params if p.weight is not None}


def check(data: st.DataObject, steps: int) -> None:
    target = data.draw(st.sampled_from(HERE))
    graph, weights = drawn(data, steps)
    compiled = Compiled(graph, weights, target)
    random = np.random.default_rng(steps)
    tokens = random.integers(0, VOCAB, 21).tolist()
    wanted = compiled.expected(tokens, dtype=np.float64)
    found = compiled.run(tokens)
    rounding = np.abs(compiled.expected(tokens) - wanted).max()  # what drawn ops make of it: an exp of a hundred, say
    assert np.abs(found - wanted).max() <= 2e-4 * max(1.0, np.abs(wanted).max()) + 8 * min(rounding, 0.01)
    for first, end, threads in ((0, 1, 1), (3, 9, 2), (4, 17, 1)):  # the same bits in any rows, on any threads
        part = compiled.run(tokens[first:end], list(range(first, end)), threads)
        np.testing.assert_array_equal(part, found[first:end])


@draw_settings(3)
@given(st.data())
def test_drawn_ops(data: st.DataObject) -> None:
    check(data, 12)


@pytest.mark.slow
@draw_settings(int(os.environ.get("DRAWN_OPS", "20")))
@given(st.data())
def test_many_drawn_ops(data: st.DataObject) -> None:
    check(data, data.draw(st.integers(1, 16)))


@pytest.mark.parametrize("target", HERE[-1:], ids=lambda t: t.name)
def test_functions_over_their_range(target: Target) -> None:
    over_their_range(lambda graph, weights: Compiled(graph, weights, target))


def over_their_range(make: Make) -> None:
    """Each function where it is steep, where it is flat and at its edges, beside numpy in float64."""
    edges = [0.0, 1e-30, 1e-8, 1e-3, 0.5, 0.62, 0.63, 0.999, 1.0, 1.001, 2.0, 5.0, 10.0, 30.0, 88.0, 89.0, 200.0, 1e10, math.inf]
    column = np.array([*edges, *(-x for x in edges), float("nan"), 1e-40], np.float32)
    table = np.tile(column, (VOCAB, 1))
    ops = sorted(op for op in FLOATS if "{1}" not in FLOATS[op] and "scalar" not in op and op not in ("cos", "sin"))

    def build(s: Scope, name: str) -> str:
        return str(s.emit("cat", *(s.emit(op, name) for op in ops), axis=1))

    compiled = make(table_graph(len(column), build), {"table": table})
    with np.errstate(all="ignore"):
        found, wanted = compiled.run([3])[0], compiled.expected([3])[0]
        wanted = np.where(np.abs(wanted) < 1.2e-38, 0, wanted)
    for op, ours, theirs in zip(ops, np.split(found, len(ops)), np.split(wanted, len(ops)), strict=True):
        flat = np.where(np.abs(ours) < 1.2e-38, 0, ours)
        np.testing.assert_allclose(flat, theirs, rtol=1e-5, atol=1e-12 if op in ("tanh", "expm1", "log1p") else 3e-7, err_msg=op)


@pytest.mark.parametrize("target", HERE[-1:], ids=lambda t: t.name)
def test_functions_with_steps(target: Target) -> None:
    at_steps(lambda graph, weights: Compiled(graph, weights, target))


def at_steps(make: Make) -> None:
    """Of numbers that are exact in binary, on both sides of each step."""
    column = np.arange(-20, 21, dtype=np.float32) / 8

    def build(s: Scope, name: str) -> str:
        half = s.emit("full", shape=(1,), dtype="f32", value=0.5)
        parts = (s.emit("floor", name), s.emit("floor_divide", name, half), s.emit("remainder", name, half))
        return str(s.emit("cat", *parts, axis=1))

    compiled = make(table_graph(len(column), build), {"table": np.tile(column, (VOCAB, 1))})
    np.testing.assert_array_equal(compiled.run([3])[0], compiled.expected([3])[0])


def test_every_element_op_has_a_spelling() -> None:
    for op in ELEMENT_OPS - {"full", "cast", "pow_scalar"}:
        assert op in FLOATS or op in EITHER, op
    assert set(INTS) <= ELEMENT_OPS and set(FLOATS) <= ELEMENT_OPS
    assert literal(-1.5, "f32") == "(-1.5f)" and literal(float("-inf"), "f32") == "-el_infinity()"
    assert literal(1e30, "i64") == str(2**31 - 1) and literal(1.0, "bool") == "1"
    node = Node("pow_scalar", ("x",), (Value("y", "f32", ()),), {"value": 2.0})
    assert expression(node, ["x"], "f32") == "x * x"


@draw_settings(200)
@given(st.data())
def test_views_are_what_numpy_says(data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    memory = np.arange(math.prod(dims))
    view, array = whole("x", "f32", True, tuple(dims)), memory.reshape(dims)
    for _ in range(data.draw(st.integers(1, 4))):
        axis = data.draw(st.integers(0, len(view.dims) - 1))
        match data.draw(st.sampled_from(["permute", "slice", "split", "join"])):
            case "permute":
                order = data.draw(st.permutations(range(len(view.dims))))
                view, array = permuted(view, order), array.transpose(order)
            case "slice":
                start = data.draw(st.integers(0, view.dims[axis] - 1))
                end = data.draw(st.integers(start + 1, view.dims[axis]))
                view, array = sliced(view, axis, start, end), array.take(range(start, end), axis)
            case kind:
                size = view.dims[axis]
                new = (*view.dims[:axis], 1, size, *view.dims[axis + 1 :])
                if kind == "split" and size % 2 == 0:
                    new = (*view.dims[:axis], 2, size // 2, *view.dims[axis + 1 :])
                elif kind == "join" and axis + 1 < len(view.dims):
                    new = (*view.dims[:axis], size * view.dims[axis + 1], *view.dims[axis + 2 :])
                moved = reshaped(view, new)
                if moved is None:
                    continue
                view, array = moved, array.reshape(new)
    strides = [stride * memory.itemsize for stride in view.strides]
    np.testing.assert_array_equal(np.lib.stride_tricks.as_strided(memory[view.offset :], view.dims, strides), array)


@pytest.mark.parametrize("quant", ["f32", "none", "int8"])
def test_a_map_writes_what_the_product_reads(quant: str) -> None:
    """The rows of an activation go to the product in its own format, without a launch between them."""
    shape = {"has_bias": False, "has_residual": False, "activation": ""}

    def build(s: Scope, name: str) -> str:
        weight = s.add_param(Param(Value("w", "f32", (24, 66)), Tensor("w", (24, 66))))
        return str(s.emit("linear", s.emit("gelu", name), weight, **shape))

    random = np.random.default_rng(3)
    weights = {"table": random.normal(size=(VOCAB, 66)).astype(np.float32), "w": random.normal(size=(24, 66)).astype(np.float32)}
    compiled = Compiled(table_graph(66, build), weights, HERE[-1], quant)
    assert [call.kernel.stem for call in compiled.plan.calls] == ["embedding", "map", "linear"]
    tokens = list(range(20))
    found, wanted = compiled.run(tokens), compiled.expected(tokens)
    assert np.abs(found - wanted).max() <= {"f32": 1e-5, "none": 2e-2, "int8": 5e-2}[quant] * np.abs(wanted).max()
    np.testing.assert_array_equal(compiled.run(tokens[:3], threads=1), found[:3])


def test_places_along_an_axis_of_one_element_need_no_loop() -> None:
    for dtype, value in (("i64", "1"), ("f32", "1.0f")):
        part = merged(Part((1,), (1,), 0, (), index=(1.0, 3.0), dtype=dtype))
        assert (part.dims, part.value) == ((), value)


@pytest.mark.parametrize(("start", "text"), [(np.inf, "el_infinity()"), (-np.inf, "-el_infinity()"), (np.nan, "el_nan()")])
def test_numbers_that_c_has_no_word_for_are_written_too(start: float, text: str) -> None:
    assert Part((4,), (1,), 0, (), index=(start, 0.0), dtype="f32").value == text

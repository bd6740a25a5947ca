"""Generic kernels of GPUs in emulation: alone beside their references, and in graphs of drawn ops beside the interpreter."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ferrum.codegen.kernels.arrays import Operand
from ferrum.codegen.kernels.arrays.conv import Conv, Ints
from ferrum.codegen.kernels.arrays.cumsum import Cumsum
from ferrum.codegen.kernels.arrays.gather import Gather
from ferrum.codegen.kernels.arrays.matmul import MatMul
from ferrum.codegen.kernels.arrays.order import Order
from ferrum.codegen.kernels.arrays.scatter import Scatter
from ferrum.codegen.kernels.arrays.take import Take
from ferrum.codegen.kernels.attend import Attend
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.grouped_linear.plain import PlainGroupedLinear
from ferrum.codegen.kernels.map import Map
from ferrum.codegen.kernels.map import body as of_map
from ferrum.codegen.kernels.map.body import Body, Part, merged
from ferrum.codegen.kernels.paged_attention.apart import Heads
from ferrum.codegen.kernels.paged_attention.plain_apart import ApartAttention
from ferrum.codegen.kernels.pool import Pool
from ferrum.codegen.kernels.recur import GpuRecur
from ferrum.codegen.kernels.reduce import REDUCTIONS, Reduce
from ferrum.codegen.kernels.rope import Rope
from ferrum.codegen.kernels.rowwise import Runs
from ferrum.codegen.kernels.run_norm import RunNorm
from ferrum.codegen.kernels.softmax import Softmax
from ferrum.codegen.kernels.store_kv import StoreKv
from ferrum.codegen.layouts import RowLayout, parse_format
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.codegen.views import contiguous
from ferrum.graphs.infer_pool import HOWS
from ferrum.graphs.interpret import interpret
from ferrum.graphs.ir import Node, Region, Value
from tests.codegen import test_cuda_kernels, test_generic_kernels, test_grouped_linear, test_metal_kernels
from tests.codegen.emulated_graphs import GPUS, Emulated, gpu, run_graph
from tests.codegen.test_array_kernels import FEW, MANY, Sketch, agree, sketches
from tests.codegen.test_generic_kernels import draw_settings
from tests.codegen.test_grouped_linear import FORMATS

DEVICES = {"cuda": test_cuda_kernels, "metal": test_metal_kernels}
MORE = int(os.environ.get("DRAWN_OPS", "20"))
MOST = 30_000  # elements of a graph's arrays: a thread that is emulated takes its time
F32, BF16 = ActFormat("f32"), ActFormat("bf16")


def operand(arg: str, *dims: int, dtype: str = "f32", row: int | None = None, offset: int = 0) -> Operand:
    size = int(np.prod(dims))
    return Operand(arg, dtype, dims, contiguous(dims), (0 if "weight" in arg else size) if row is None else row, offset)


def float_map() -> Region:
    """silu(a + float(b)), where c."""
    inputs = Value("a", "f32", ()), Value("b", "i32", ()), Value("c", "bool", ())
    nodes = (
        Node("cast", ("b",), (Value("d", "f32", ()),)),
        Node("add", ("a", "d"), (Value("e", "f32", ()),)),
        Node("silu", ("e",), (Value("f", "f32", ()),)),
        Node("where", ("c", "f", "a"), (Value("g", "f32", ()),)),
    )
    return Region(inputs, nodes, ("g",))


def maps() -> list[GpuKernel]:
    dims = (3, 40, 5)
    read = (
        of_map.Operand("value:0", "f32", 620, 20, (200, 5, 1)),
        of_map.Operand("input:positions", "i32", 1, 0, (0, 0, 0)),
        of_map.Operand("weight:0", "bool", 0, 0, (0, 1, 0)),
    )
    whole = merged(Part(dims, contiguous(dims), 0, read, float_map()))
    turned = Part((3, 5, 40), (200, 1, 5), 0, (of_map.Operand("value:0", "i32", 600, 0, (200, 1, 5)),), dtype="i32")
    fill = Part((50,), (1,), 0, (), index=(0.5, 0.0))
    inner = Part((4, 6), (10, 1), 2, (of_map.Operand("value:0", "f32", 24, 0, (6, 1)),))
    return [
        Map(600, Body((whole,)), F32, True),
        Map(600, Body((whole,)), BF16, True),
        Map(600, Body((turned,)), F32, True),
        Map(50, Body((fill, inner)), F32, True),
        Map(50, Body((fill, inner)), BF16, True),
        Map(7, Body((Part((7,), (1,), 0, (), index=(3.0, 2.0), dtype="i32"),)), F32, False),
        Map(1, Body((Part((), (), 0, (of_map.Operand("value:0", "f32", 9, 4, ()),)),)), F32, True),
    ]


def runs() -> list[GpuKernel]:
    """Runs that are the first, a middle and the last axis; of 70 elements, and of one."""
    first = Runs(700, 0, (), (), 70, 10, (10,), (1,))
    middle = Runs(120, 8, (2,), (60,), 5, 12, (3,), (4,))
    last = Runs(600, 3, (6,), (90,), 70, 1, (), ())
    one = Runs(8, 0, (8,), (1,), 1, 1, (), ())
    return [
        *(Reduce(x, kind) for kind in REDUCTIONS for x in (first, middle, last, one)),
        *(Softmax(x) for x in (first, middle, last, one)),
        *(RunNorm(last, 1e-5, *how) for how in ((True, True), (True, False), (False, False))),
        Rope(last, 70),
        Rope(last, 24),
    ]


def arrays() -> list[GpuKernel]:
    places = operand("value:1", 3, 4, 2, dtype="i32")
    x, into = operand("value:0", 3, 7, 2, row=60, offset=5), operand("result", 3, 4, 2)
    strided = Operand("value:1", "f32", (2, 3, 5, 60), (900, 300, 1, 5), 1800)
    numbers = operand("value:0", 3, 300, 2, dtype="i32")
    return [
        Take(operand("weight:0", 300, 4), operand("value:0", 3, 2, dtype="i32"), operand("result", 3, 2, 4), 0),
        Take(x, operand("weight:0", 4, dtype="i32"), operand("result", 3, 4, 2), 1),
        Gather(x, places, into, 1, 4),
        Gather(operand("weight:0", 9, 4), operand("value:0", 4, dtype="i32"), operand("result", 4), 0, 1),
        *(Scatter(x, places, operand("value:2", 3, 4, 2), operand("result", 3, 7, 2), 1, adds) for adds in (True, False)),
        *(Order(numbers, operand("result", 3, k, 2, dtype="i32"), 1, down) for k in (4, 300) for down in (True, False)),
        Order(operand("value:0", 70), operand("result", 8, dtype="i32"), 0, True),
        Cumsum(operand("value:0", 3, 7, 2), operand("result", 3, 7, 2), 1),
        Cumsum(operand("value:0", 7, 2, dtype="i32"), operand("result", 7, 2, dtype="i32"), 0),
        MatMul(operand("value:0", 2, 3, 4, 5), strided, operand("result", 2, 3, 4, 60)),
        Conv(
            operand("value:0", 6, 9, 8), operand("weight:0", 4, 3, 3, 2), operand("result", 4, 5, 4),
            Ints((2, 2)), Ints((1, 0)), Ints((1, 1)), 2,
        ),
        Conv(
            operand("value:0", 6, 40), operand("weight:0", 6, 1, 4), operand("result", 6, 40),
            Ints((1,)), Ints((3,)), Ints((2,)), 6,
        ),
    ]  # fmt: skip


def sequences() -> list[GpuKernel]:
    q, k, v = operand("value:0", 4, 40, row=320), operand("value:0", 2, 40, row=320, offset=160), operand("value:1", 2, 24)
    heads, bytes_ = (Heads(0, 400, 0, 40), Heads(0, 400, 160, 40), Heads(1, 50, 2, 24)), 16 * (40 + 24) * 2
    rows = Operand("input:sample_rows", "i32", (), (), 1)
    recurrent = [operand(f"value:{i}", 3, size) for i, size in enumerate((5, 5, 90, 5))]
    alone = operand("value:3", 3, 1)
    plain = (operand("value:0", 6, 80), operand("value:1", 3, 80), operand("value:2", 3, 80), operand("result", 6, 80))
    return [
        Attend(q, k, v, operand("result", 4, 24), True, 3, 0.3, 5.0),
        Attend(q, k, v, operand("result", 4, 24), False, 9, 0.3, 0.0),
        *(Attend(*plain, causal, 0, 0.1, 0.0) for causal in (True, False)),
        *(Pool(operand("value:0", 300), rows, operand("result", 300), how) for how in HOWS),
        GpuRecur(*recurrent, operand("value:4", 3), operand("result", 3, 90), 1, True, block_bytes=4 * 3 * 5 * 90 + 64),
        GpuRecur(*recurrent[:3], alone, alone, operand("result", 3, 90), 0, False, block_bytes=4 * 3 * 5 * 90),
        StoreKv(4, 2, 40, 24, *heads, "bf16", block_bytes=3 * bytes_, pool=1),
        StoreKv(3, 1, 41, 24, *heads, "bf16", block_bytes=4 * bytes_),
        StoreKv(4, 2, 40, 24, *heads, "f32", block_bytes=4 * bytes_),
        ApartAttention(4, 2, 40, 7, 0.3, "bf16", "bf16", 2 * bytes_, 24, 4.0, "sinks slopes"),
        ApartAttention(4, 2, 40, 0, 0.3, "f32", "f32", 4 * bytes_, 24, 0.0, "slopes"),
        ApartAttention(6, 3, 24, 0, 0.3, "f32", "bf16", 2 * 3 * 16 * 48 * 4, 24, 0.0, "sinks"),
    ]


def grouped() -> list[GpuKernel]:
    kernels = []
    for fmt in ("f32", "bf16", "fp8", "int8-g32", "int4-g32", "int4a-g64"):
        x = Operand("value:0", "f32", (3, 2, 130), (390, 0, 1), 1200, 7)
        group, out = operand("value:1", 3, 2, dtype="i32"), operand("result", 6, 37)
        kernels.append(PlainGroupedLinear(37, 130, RowLayout(37, 130, parse_format(fmt)), 5, x, group, out))
    return kernels


KINDS = (maps, runs, arrays, sequences, grouped)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernels", KINDS, ids=lambda made: made.__name__)
def test_alone(kernels: object, device: str) -> None:
    """Under every schedule."""
    DEVICES[device].check(kernels(), 1)  # type: ignore[operator]


def check_arrays(s: Sketch, target: str) -> None:
    assume(sum(array.size for array in s.arrays.values()) < MOST)
    graph = s.graph()
    found, laid_out, stored = run_graph(graph, s.arrays, s.weights, gpu(target))
    agree(graph, found, interpret(laid_out, s.arrays, stored))


@FEW
@given(sketches(), st.sampled_from(GPUS))
def test_arrays(s: Sketch, target: str) -> None:
    check_arrays(s, target)


@pytest.mark.slow
@MANY
@given(sketches(), st.sampled_from(GPUS))
def test_more_arrays(s: Sketch, target: str) -> None:
    check_arrays(s, target)


@pytest.mark.parametrize(("examples", "steps"), ((2, 12), pytest.param(MORE, 16, marks=pytest.mark.slow)))
def test_drawn_ops(examples: int, steps: int) -> None:
    @draw_settings(examples)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        graph, weights = test_generic_kernels.drawn(data, steps)
        made = Emulated(graph, weights, gpu(data.draw(st.sampled_from(GPUS))))
        tokens = np.random.default_rng(steps).integers(0, test_generic_kernels.VOCAB, 21).tolist()
        wanted, found = made.expected(tokens), made.run(tokens)
        assume(np.isfinite(wanted).all())  # a logarithm of what is rounded to 0 says nothing
        assert np.abs(found - wanted).max() <= 2e-4 * max(1.0, np.abs(wanted).max())
        part = made.run(tokens[3:9], list(range(3, 9)))  # the same bits in any rows
        np.testing.assert_array_equal(part, found[3:9])

    check()


@pytest.mark.parametrize("target", GPUS)
def test_functions_of_elements(target: str) -> None:
    for agree_with in (test_generic_kernels.over_their_range, test_generic_kernels.at_steps):
        agree_with(lambda graph, weights: Emulated(graph, weights, gpu(target)))


@pytest.mark.parametrize("examples", (2, pytest.param(10, marks=pytest.mark.slow)))
def test_grouped_products(examples: int) -> None:
    @draw_settings(examples)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sizes, draw = st.integers(1, 150), data.draw
        rows = draw(st.sampled_from([1, 2, 7])), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3, 9]))
        s = test_grouped_linear.sketch(*rows, draw(sizes), draw(sizes), draw(st.integers(0, 100)))
        graph, target, quant = s.graph(), gpu(draw(st.sampled_from(GPUS))), draw(st.sampled_from((*FORMATS, "fp8")))
        found, laid_out, weights = run_graph(graph, s.arrays, s.weights, target, quant)
        wanted = interpret(laid_out, s.arrays, weights)
        for name in graph.outputs:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=2e-5 * max(1.0, float(np.abs(wanted[name]).max())))

    check()

"""Products by tiles, with the stand-in in the place of the instructions: bits are those of vectors where sums are whole, and the
same alone and in any company where they are not."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.codegen import tune
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.layouts import parse_format, to_f32
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import Target, parse_target
from ferrum.codegen.toolchains.cxx import CToolchain, find_compiler
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.ir import Param, Value
from ferrum.graphs.ops import GATES
from tests.codegen import kernel_harness
from tests.codegen.kernel_harness import Call, run, run_graph
from tests.codegen.test_grouped_linear import check, sketch
from tests.codegen.test_kernels import Product, padded
from tests.codegen.test_stand_ins import PLAIN, in_plain_c
from tests.codegen.tiles import with_tiles

AMX, VECTORS = parse_target("cpu-amx"), parse_target("cpu-avx512-vnni")
assert isinstance(AMX, Target) and isinstance(VECTORS, Target)
# Alone by a kernel of vectors, at the border, one height of all blocks, a last block among the rows of another, two passes.
ROWS = (7, 8, 16, 21, 48, 50)
INTEGERS = ("int8-g64", "int4-g32", "int4a-g32", "int8-g32", "int4-g128", "int6-g128", "int4m-g32", "int4s-g64", "int5-g32")
MOST = max(ROWS)
GATE = next(iter(GATES))


class Many(Product):
    """A product of more rows."""

    def __init__(self, target: Target, n: int, k: int, name: str, **options: Any) -> None:
        super().__init__(target, n, k, name, **options)
        rng = np.random.default_rng(k)
        self.x = rng.normal(size=(MOST, k)).astype(np.float32) * 10.0 ** rng.integers(-2, 3, (MOST, 1))
        self.x, self.r = self.x.astype(np.float32), rng.normal(size=(MOST, self.kernel.n_out)).astype(np.float32)


@cache
def compiled(compiler: CToolchain, source: str, target: Target) -> bytes:
    """Vectors are this CPU's own where it has them; a short compile, since there is one for each kernel."""
    if runs_here(VECTORS.arch, VECTORS.requires):
        return compiler.compile(with_tiles(source), replace(target, cflags=(*VECTORS.cflags, "-O1")))
    return compiler.compile(in_plain_c(source), PLAIN)


class StandIn:
    """The compiler that the tuner finds."""

    def compile(self, source: str, target: Target) -> bytes:
        return compiled(find_compiler(PLAIN.arch), source, target)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(PLAIN.arch, PLAIN.requires):
        pytest.skip("stand-ins are compiled for AVX2, which this CPU lacks")
    monkeypatch.setattr(kernel_harness, "compiled", compiled)


def results(products: Sequence[Product], rows: Sequence[int], target: Target) -> list[NDArray[np.float32]]:
    """Of each product the results of its ``rows`` of x, in one step."""
    calls: list[Call] = []
    sizes: list[int] = []
    inputs: dict[int, NDArray[np.generic]] = {}
    weights = b""
    for product in products:
        x, rounded, more, out = range(len(sizes) + 1, len(sizes) + 5)
        at = len(weights), len(weights) + len(padded(product.w)), 0
        calls += [Call(product.quantize, x, rounded), Call(product.kernel, rounded, out, at, in_private=True, residual=more)]
        inputs |= {x: product.x[list(rows)], more: product.r[list(rows)]}
        weights += padded(product.w, product.b)
        sizes += product.slots
    return [slot.view(np.float32) for slot in run(calls, sizes, len(rows), inputs, weights, target)[4::4]]


def products(target: Target, names: Sequence[str]) -> list[Product]:
    """Of all kinds; sizes leave a part of the last unit, of the last chunk and of the last tile of K."""
    kinds: tuple[dict[str, Any], ...] = (
        {"bias": True}, {"residual": True}, {"activation": GATE, "halves": 2, "bias": True}, {},
    )  # fmt: skip
    return [
        Many(target, 140 + 2 * i, (512, 300, 1030, 136)[i % 4], name, **kinds[i % len(kinds)]) for i, name in enumerate(names)
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", [INTEGERS[:2], pytest.param(INTEGERS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_whole_sums_have_the_bits_of_vectors(names: Sequence[str]) -> None:
    by_tiles, by_vectors = products(AMX, names), products(VECTORS, names)
    for each, other in zip(by_tiles, by_vectors, strict=True):
        assert (each.kernel.amx_rows, other.kernel.amx_rows) == (8, 0)
        assert (each.layout, each.act) == (other.layout, other.act)
    for rows in ROWS:
        found = (results(by_tiles, range(rows), AMX), results(by_vectors, range(rows), VECTORS))
        for name, got, expected in zip(names, *found, strict=True):
            assert np.isfinite(expected).all() and expected.any()
            assert (got.view(np.uint32) == expected.view(np.uint32)).all(), (name, rows)


def by_the_manual(product: Product, rows: int) -> NDArray[np.float32]:
    """``x w`` as tiles sum bfloat16: over 32 values of K the even and the odd ones apart, in float32, then both, then the total.

    A multiply-add of two bfloat16 is computed with 53 bits and rounded again, which moves a sum by a bit at most, and rarely.
    """
    k = product.kernel.k
    x = Quantize.reference(product.x[:rows], product.act).astype(np.float64)
    w = product.layout.decode(product.w.tobytes()).astype(np.float64)
    x, w = (np.pad(values, ((0, 0), (0, -k % 32))) for values in (x, w))
    total = np.zeros((rows, len(w)), np.float32)
    for start in range(0, x.shape[1], 32):
        halves = [np.zeros_like(total), np.zeros_like(total)]
        for at in range(start, start + 32):
            halves[at % 2] = (halves[at % 2] + x[:, at, None] * w[None, :, at]).astype(np.float32)
        total = total + (halves[0] + halves[1])
    return total


@pytest.mark.timeout(300)
def test_sums_of_bfloat16_are_those_of_tiles_and_of_no_company() -> None:
    made = [
        Many(AMX, 140, 200, "bf16"), Many(AMX, 64, 1030, "bf16"), Many(AMX, 70, 7, "bf16"), Many(AMX, 30, 65, "bf16"),
        Many(AMX, 150, 96, "bf16", bias=True, residual=True), Many(AMX, 138, 320, "bf16", activation=GATE, halves=2),
    ]  # fmt: skip
    assert all(product.kernel.amx_rows == 1 and product.act.kind == "bf16" for product in made)
    together = results(made, range(MOST), AMX)
    for product, got in zip(made, together, strict=True):
        expected = product.expected(MOST)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    for product, got in zip(made[:4], together, strict=False):
        same = got.view(np.uint32) == by_the_manual(product, MOST).view(np.uint32)
        assert same.mean() > 0.999
    for chosen in ([0], [41], [3, 49, 20], range(7), range(5, 22), range(33)):
        for got, all_rows in zip(results(made, chosen, AMX), together, strict=True):
            assert (got.view(np.uint32) == all_rows[list(chosen)].view(np.uint32)).all(), chosen


def test_floats_of_vectors_round_elsewhere() -> None:
    """What the test above compares with is not what vectors would have given."""
    tiles, vectors = (results([Many(t, 64, 1030, "bf16")], range(8), t)[0] for t in (AMX, VECTORS))
    assert (tiles != vectors).any() and np.abs(tiles - vectors).max() <= 2e-2 * np.abs(vectors).max()


def test_rows_are_rounded_for_tiles() -> None:
    product = Many(AMX, 64, 64, "bf16")
    assert product.act.kind == "bf16" and not AMX.has_bf16_dot and AMX.rounds_to_bf16
    rounded = Quantize.reference(product.x, product.act)
    assert (to_f32((rounded.view(np.uint32) >> 16).astype(np.uint16)) == rounded).all()


@pytest.mark.slow
def test_roofs_and_numbers_of_rows_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code's own measurement of its tiles, and the tuner's of the rows from which they are taken."""
    monkeypatch.setattr(tune, "find_compiler", lambda arch, tiles: StandIn())
    monkeypatch.setattr(tune, "_COLD_BYTES", 1 << 12)
    monkeypatch.setattr(tune, "_MANY_REGISTERS", (((6, 4),), ((6, 4),)))
    fmt = parse_format("int8-g64")
    w = np.zeros((64, 64), np.float32)
    runner = tune._Runner(tune._linear(AMX, fmt, 64, 64, tune.candidates(AMX, fmt)[0]), AMX, w, tmp_path / "step.so")
    try:
        runner.lib.ferrum_roof_tile.restype = ctypes.c_double
        runner.lib.ferrum_roof_tile.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]
        assert all(runner.lib.ferrum_roof_tile(runner.handle, kind, 20) > 0 for kind in (0, 1))
        assert all(runner.seconds(rows) > 0 for rows in tune.ROWS)  # a step after it
    finally:
        runner.close()
    chosen, records = tune.tune(
        AMX, [Param(Value("w", "f32", (64, 64)), Tensor("w", (64, 64)), format=fmt.name, layout="unit16x4h1")]
    )
    assert chosen.keys() == {fmt.name} and {r.amx_rows for r in records} == {2, 8, 16}


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int8", "int4-g32"])
def test_products_of_each_rows_own_matrix(quant: str) -> None:
    """Runs of rows of every length, each by its own way; where sums are whole, the same bits as by vectors."""
    s = sketch(tokens=40, times=2, count=6, n=70, k=100, seed=3)
    check(s, quant, AMX)
    graph = s.graph()
    by_tiles, by_vectors = (run_graph(graph, s.arrays, s.weights, target, quant)[0] for target in (AMX, VECTORS))
    for name in graph.outputs:
        same = by_tiles[name].view(np.uint32) == by_vectors[name].view(np.uint32)
        assert same.all() == (quant != "none"), name

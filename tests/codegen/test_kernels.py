"""Each kernel alone against its reference, over shapes that do not divide evenly, formats, row counts and targets."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.codegen.kernels.linear.choose import cut
from ferrum.codegen.kernels.linear.cpu import CpuLinear
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.kernels.rms_norm import RmsNorm
from ferrum.codegen.layouts import TiledLayout, parse_format, stored, to_f32
from ferrum.codegen.layouts.activations import ActFormat, act_for
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import ANY_CPUS, TARGETS, Target
from ferrum.codegen.toolchains.cxx import _zig_compiler
from ferrum.codegen.tuned import blocking
from ferrum.graphs.ops import GATES
from tests.codegen import kernel_harness
from tests.codegen.kernel_harness import Call, run

HERE = [t for t in TARGETS if runs_here(t.arch, t.requires)]
FORMATS = (
    "f32", "bf16", "int8-g32", "int8-g64", "int6-g64", "int6k-g16", "int5-g32", "int5m-g32", "int5k-g32", "int4-g32", "int4-g64",
    "int4a-g32", "int4k-g32", "int4m-g32", "int4s-g64",
)  # fmt: skip
ROWS = (1, 2, 5, 6, 7, 13, 20)
# Targets share the formats out; all of each are slow.
SHARED = [pytest.param(t, FORMATS[i % 2 :: 2], id=t.name) for i, t in enumerate(HERE)]
WHOLE = [pytest.param(t, FORMATS, id=f"{t.name}, all", marks=pytest.mark.slow) for t in HERE]
# Those that read units which are cut for wider vectors; a few formats, each with other numbers at the start of a group.
PARTS = [t for any_cpu in ANY_CPUS for t in any_cpu.variants if t.unit and runs_here(t.arch, t.requires)]
OF_PARTS = ("bf16", "int8-g128", "int4-g32", "int4a-g32", "int5k-g32", "int6k-g16")
IN_PARTS = [pytest.param(t, OF_PARTS, id=f"{t.name}, of several") for t in PARTS[:1]]
WHOLE += [pytest.param(t, FORMATS, id=f"{t.name}, of several, all", marks=pytest.mark.slow) for t in PARTS]
F32 = NDArray[np.float32]


def layout_for(target: Target, n: int, k: int, name: str, halves: int = 1) -> TiledLayout:
    fmt = parse_format(name)
    return TiledLayout(n, k, fmt, *(target.unit or (target.lanes, blocking(target, fmt, {}).tiles)), halves)


def decode_act(raw: NDArray[np.uint8], act: ActFormat, k: int) -> F32:
    """The float32 values that stored rows mean."""
    if act.kind == "f32":
        return raw.view(np.float32)[:, :k]
    if act.kind == "bf16":
        return to_f32(np.ascontiguousarray(raw).view(np.uint16)[:, :k])
    padded, groups = act.padded_k(k), act.groups(k)
    q = raw[:, :padded].view(np.int8).reshape(len(raw), groups, act.group).astype(np.float32)
    scale = np.ascontiguousarray(raw[:, padded : padded + 4 * groups]).view(np.float32)
    return (q * scale[..., None]).reshape(len(raw), padded)[:, :k]


def padded(*arrays: NDArray[Any]) -> bytes:
    """Each at a multiple of 64 bytes."""
    raw = [array.tobytes() for array in arrays]
    return b"".join(data + bytes(-len(data) % 64) for data in raw)


class Product:
    """A product, the rounding of its rows before it, its arrays, and what it is to give."""

    def __init__(
        self, target: Target, n: int, k: int, name: str, *, halves: int = 1, bias: bool = False, residual: bool = False,
        activation: str = "", keep: bool = False,
    ) -> None:  # fmt: skip
        layout = self.layout = layout_for(target, n, k, name, halves)
        act = self.act = act_for(layout.format, k, target.rounds_to_bf16, keep)
        block = blocking(target, layout.format, {}, act)
        self.quantize = Quantize(k, act)
        self.kernel = CpuLinear(n, k, layout, bias, residual, activation, act, **cut(layout, target, block))
        rng = np.random.default_rng(n * 1000 + k)
        self.x, w = rng.normal(size=(max(ROWS), k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
        self.b, self.r = (rng.normal(size=size).astype(np.float32) for size in (n, (max(ROWS), self.kernel.n_out)))
        self.w = stored(w, layout)

    def expected(self, rows: int) -> F32:
        k = self.kernel
        x = Quantize.reference(self.x[:rows], self.act)
        w = self.layout.decode(self.w.tobytes())
        return CpuLinear.reference(x, w, self.b if k.bias else None, self.r[:rows] if k.residual else None, k.activation)

    @property
    def slots(self) -> list[int]:
        """Bytes of a row of numbers, rounded numbers, what is added, results."""
        return [4 * self.kernel.k, self.act.row_bytes(self.kernel.k), 4 * self.kernel.n_out, 4 * self.kernel.n_out]


def run_products(products: Sequence[Product], rows: int, target: Target) -> list[F32]:
    """The results of products that are compiled together."""
    calls: list[Call] = []
    sizes: list[int] = []
    inputs: dict[int, NDArray[np.generic]] = {}
    weights = b""
    for product in products:
        x, rounded, more, out = range(len(sizes) + 1, len(sizes) + 5)
        at = len(weights), len(weights) + len(padded(product.w)), 0
        calls += [Call(product.quantize, x, rounded), Call(product.kernel, rounded, out, at, in_private=True, residual=more)]
        inputs |= {x: product.x[:rows], more: product.r[:rows]}
        weights += padded(product.w, product.b)
        sizes += product.slots
    slots = run(calls, sizes, rows, inputs, weights, target)
    return [slot.view(np.float32) for slot in slots[4::4]]


@pytest.mark.parametrize(("target", "names"), [*SHARED, *IN_PARTS, *WHOLE])
def test_linear(target: Target, names: Sequence[str]) -> None:
    """Products differ from the reference on the same activations, rounded or not, by summation order alone."""
    chance, products = Random(f"3 {target.name}"), []
    for name, keep in [(name, keep) for name in names for keep in (False, True)]:
        activation = chance.choice(["", *GATES])
        halves = 2 if activation else 1
        n, k = chance.randint(1, 80) * halves, chance.randint(1, 300)
        bias, residual = chance.random() < 0.5, not activation and chance.random() < 0.5
        options: dict[str, Any] = {"bias": bias, "residual": residual, "activation": activation, "keep": keep}
        products.append(Product(target, n, k, name, halves=halves, **options))
    for rows in ROWS:
        for each, got in zip(products, run_products(products, rows, target), strict=True):
            error, scale = np.abs(got - (expected := each.expected(rows))), max(1.0, float(np.abs(expected).max()))
            # a value on the border of two levels may be rounded to either
            assert error.max() <= (2e-2 if each.act.kind == "q8" else 2e-5) * scale, (each.kernel, rows)
            assert np.median(error) <= 2e-5 * scale, (each.kernel, rows)


@pytest.mark.parametrize(("target", "names"), [*SHARED, *WHOLE])
def test_the_largest_sums_fit(target: Target, names: Sequence[str]) -> None:
    """Every weight and every value of x at the end of its range, with signs that never cancel."""
    n, k, names = 5, 256, [name for name in names if "-g" in name]
    products = [Product(target, n, k, name) for name in names]
    sign = np.where(np.arange(k) % 3 == 1, -1, 1).astype(np.float32)
    w = np.array([3.0, -3.0, 1e-3, 0.0, 7.5], np.float32)[:, None] * sign
    w[3] = -w[4]  # one more row of both signs
    for product in products:
        product.x, product.w = np.tile(sign, (max(ROWS), 1)), stored(w, product.layout)
    for rows in (1, 7):
        for name, product, got in zip(names, products, run_products(products, rows, target), strict=True):
            np.testing.assert_allclose(got, product.expected(rows), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("target", [t for t in HERE if t.lanes == 16], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["bf16", "int8-g64", "int4-g32"])
def test_products_of_another_compiler(target: Target, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions written by hand must mean the same to clang, which is what zig is."""
    zig = _zig_compiler()
    assert zig is not None
    monkeypatch.setattr(kernel_harness, "find_compiler", lambda arch: zig)
    product = Product(target, 70, 256, name)
    (got,) = run_products([product], 13, target)
    expected = product.expected(13)
    assert np.abs(got - expected).max() <= (2e-2 if product.act.kind == "q8" else 2e-5) * np.abs(expected).max()


class Norms:
    """Rows [30, k], rounded to ``act`` alone and by each norm; slots and weights of them."""

    def __init__(self, k: int, act: ActFormat, bias: bool) -> None:
        self.k, self.act, self.bias = k, act, bias
        rng, rows = np.random.default_rng(k), 30
        self.x = (rng.normal(size=(rows, k)) * 10.0 ** rng.integers(-3, 3, (rows, 1))).astype(np.float32)
        self.x[0, : k // 2] = 0  # a group of zeros
        self.w, self.b = (rng.normal(size=k).astype(np.float32) for _ in range(2))

    def calls(self, slot: int, weights: int) -> list[Call]:
        k, act, bias, f32 = self.k, self.act, self.bias, ActFormat("f32")
        at = (weights, weights + len(padded(self.w)), 0)
        kernels = [Quantize(k, act), RmsNorm(k, 1e-5, act), RmsNorm(k, 1e-5, f32)]
        kernels += [LayerNorm(k, 1e-5, bias, f32), LayerNorm(k, 1e-5, bias, act)]
        return [Call(kernel, slot, slot + i, at) for i, kernel in enumerate(kernels, 1)]

    @property
    def slots(self) -> list[int]:
        rounded = self.act.row_bytes(self.k)
        return [4 * self.k, rounded, rounded, 4 * self.k, 4 * self.k, rounded]

    def check(self, slots: Sequence[NDArray[np.uint8]], rows: int) -> None:
        x, k, act = self.x[:rows], self.k, self.act
        normed = RmsNorm.reference(x, self.w, 1e-5)
        np.testing.assert_allclose(slots[3].view(np.float32), normed, rtol=2e-5, atol=1e-6)
        expected = LayerNorm.reference(x, self.w, self.b if self.bias else None, 1e-5)
        np.testing.assert_allclose(slots[4].view(np.float32), expected, rtol=2e-5, atol=2e-5)
        for slot, values in ((slots[1], x), (slots[2], normed), (slots[5], expected)):
            got = decode_act(slot, act, k)
            step = np.abs(values).max(1, keepdims=True) / {"f32": 1e5, "bf16": 128, "q8": 127}[act.kind]
            assert (np.abs(got - values) <= 0.51 * step + 1e-6).all()
            assert np.isfinite(got).all()


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_quantize_and_norms(target: Target) -> None:
    chance = Random(f"4 {target.name}")
    acts = sorted({act_for(parse_format(name), 2, True) for name in FORMATS}, key=str)
    norms = [Norms(chance.randint(1, 400), act, bool(i % 2)) for i, act in enumerate(acts)]
    calls: list[Call] = []
    sizes: list[int] = []
    starts, weights = [], b""
    for each in norms:
        calls += each.calls(len(sizes) + 1, len(weights))
        starts.append(len(sizes) + 1)
        weights += padded(each.w, each.b)
        sizes += each.slots
    for rows in (1, 3, 8, 9, 30):
        inputs: dict[int, NDArray[np.generic]] = {at: each.x[:rows] for at, each in zip(starts, norms, strict=True)}
        slots = run(calls, sizes, rows, inputs, weights + bytes(64), target)
        for at, each in zip(starts, norms, strict=True):
            each.check(slots[at : at + 6], rows)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_embedding(target: Target) -> None:
    n, k, weights = 37, 77, b""
    ids = np.array([0, 36, 5, 5, 16, 15, 31], np.int32)
    calls, tables = [], []
    for slot, name in enumerate(FORMATS, 1):
        layout = layout_for(target, n, k, name)
        table = stored(np.random.default_rng(0).normal(size=(n, k)).astype(np.float32), layout)
        calls.append(Call(Embedding(n, k, layout, 0.5), 0, slot, (len(weights), 0, 0)))
        tables.append(layout.decode(table.tobytes()))
        weights += padded(table)
    slots = run(calls, [4 * k] * len(FORMATS), len(ids), {}, weights + bytes(64), target, ids)
    for name, slot, table in zip(FORMATS, slots[1:], tables, strict=True):
        expected = Embedding.reference(ids, table, 0.5)
        np.testing.assert_allclose(slot.view(np.float32), expected, rtol=1e-6, atol=1e-7, err_msg=name)

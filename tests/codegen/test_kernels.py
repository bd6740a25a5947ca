"""Each kernel alone against its reference, over shapes that do not divide evenly, formats, row counts and targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.codegen.kernels.embedding import Embedding
from ferrum.codegen.kernels.layer_norm import LayerNorm
from ferrum.codegen.kernels.linear.cpu import CpuLinear
from ferrum.codegen.kernels.quantize import Quantize
from ferrum.codegen.kernels.rms_norm import RmsNorm
from ferrum.codegen.layouts import TiledLayout, parse_format, stored, to_f32
from ferrum.codegen.layouts.activations import ActFormat, act_for
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import TARGETS, Target
from ferrum.codegen.toolchains.cxx import _zig_compiler
from ferrum.codegen.tuned import blocking
from ferrum.graphs.ops import GATES
from tests.codegen import kernel_harness
from tests.codegen.kernel_harness import Call, run

HERE = [t for t in TARGETS if runs_here(t.arch, t.requires)]
FORMATS = ("f32", "bf16", "int8-g32", "int8-g128", "int6-g64", "int4-g32", "int4-g64", "int4a-g32", "int4m-g32", "int4s-g64")
SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
F32 = NDArray[np.float32]


def layout_for(target: Target, n: int, k: int, name: str, halves: int = 1) -> TiledLayout:
    fmt = parse_format(name)
    return TiledLayout(n, k, fmt, target.lanes, blocking(target, fmt, {}).tiles, halves)


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


@SETTINGS
@given(st.data())
def test_linear(data: st.DataObject) -> None:
    """Products differ from the reference on the same rounded activations by summation order alone."""
    draw = data.draw
    target = draw(st.sampled_from(HERE))
    activation = draw(st.sampled_from(["", *GATES]))
    halves = 2 if activation else 1
    n, k, rows = draw(st.integers(1, 80)) * halves, draw(st.integers(1, 300)), draw(st.sampled_from([1, 2, 5, 6, 7, 13, 20]))
    layout = layout_for(target, n, k, draw(st.sampled_from(FORMATS)), halves)
    bias, residual = draw(st.booleans()), not activation and draw(st.booleans())
    act = act_for(layout.format, k, target.has_bf16_dot)
    block = blocking(target, layout.format, {})
    kernel = CpuLinear(n, k, layout, bias, residual, activation, act, block.rows, block.tiles, block.chunk_kib)
    rng = np.random.default_rng(n * 1000 + k)
    x, w = rng.normal(size=(rows, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
    b, r = rng.normal(size=n).astype(np.float32), rng.normal(size=(rows, kernel.n_out)).astype(np.float32)
    raw = stored(w, layout).tobytes()
    raw += bytes(-len(raw) % 64)
    calls = [Call(Quantize(k, act), 1, 2), Call(kernel, 2, 4, (0, len(raw), 0), in_private=True, residual=3)]
    sizes = [4 * k, act.row_bytes(k), 4 * kernel.n_out, 4 * kernel.n_out]
    slots = run(calls, sizes, rows, {1: x, 3: r}, raw + b.tobytes(), target)
    expected = CpuLinear.reference(
        Quantize.reference(x, act), layout.decode(raw), b if bias else None, r if residual else None, activation
    )
    got = slots[4].view(np.float32)
    limit = 2e-2 if act.kind == "q8" else 2e-5  # a value on the border of two levels may be rounded to either
    assert np.abs(got - expected).max() <= limit * max(1.0, np.abs(expected).max())
    assert np.median(np.abs(got - expected)) <= 2e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", ["int8-g128", "int6-g64", "int4-g32", "int4-g128", "int4a-g32", "int4m-g32", "int4s-g32"])
def test_the_largest_sums_fit(target: Target, rows: int, name: str) -> None:
    """Every weight and every value of x at the end of its range, with signs that never cancel."""
    n, k = 5, 256
    layout = layout_for(target, n, k, name)
    act = act_for(layout.format, k, target.has_bf16_dot)
    block = blocking(target, layout.format, {})
    kernel = CpuLinear(n, k, layout, False, False, "", act, block.rows, block.tiles, block.chunk_kib)
    sign = np.where(np.arange(k) % 3 == 1, -1, 1).astype(np.float32)
    x, w = np.tile(sign, (rows, 1)), np.array([3.0, -3.0, 1e-3, 0.0, 7.5], np.float32)[:, None] * sign
    w[3] = -w[4]  # one more row of both signs
    raw = stored(w, layout).tobytes()
    raw += bytes(-len(raw) % 64)
    calls = [Call(Quantize(k, act), 1, 2), Call(kernel, 2, 3, (0, 0, 0), in_private=True)]
    slots = run(calls, [4 * k, act.row_bytes(k), 4 * n], rows, {1: x}, raw, target)
    expected = CpuLinear.reference(Quantize.reference(x, act), layout.decode(raw), None, None, "")
    np.testing.assert_allclose(slots[3].view(np.float32), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [t for t in HERE if t.lanes == 16], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["bf16", "int8-g128", "int4-g32"])
def test_products_of_another_compiler(target: Target, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions written by hand must mean the same to clang, which is what zig is."""
    zig = _zig_compiler()
    assert zig is not None
    monkeypatch.setattr(kernel_harness, "find_compiler", lambda arch: zig)
    n, k, rows = 70, 256, 13
    layout, rng = layout_for(target, n, k, name), np.random.default_rng(0)
    act, block = act_for(layout.format, k, target.has_bf16_dot), blocking(target, layout.format, {})
    kernel = CpuLinear(n, k, layout, False, False, "", act, block.rows, block.tiles, block.chunk_kib)
    x, w = rng.normal(size=(rows, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
    raw = stored(w, layout).tobytes()
    raw += bytes(-len(raw) % 64)
    calls = [Call(Quantize(k, act), 1, 2), Call(kernel, 2, 3, (0, 0, 0), in_private=True)]
    slots = run(calls, [4 * k, act.row_bytes(k), 4 * n], rows, {1: x}, raw, target)
    expected = CpuLinear.reference(Quantize.reference(x, act), layout.decode(raw), None, None, "")
    error = np.abs(slots[3].view(np.float32) - expected)
    assert error.max() <= (2e-2 if act.kind == "q8" else 2e-5) * np.abs(expected).max()


@SETTINGS
@given(st.data())
def test_quantize_and_norms(data: st.DataObject) -> None:
    draw = data.draw
    target, k, rows = draw(st.sampled_from(HERE)), draw(st.integers(1, 400)), draw(st.sampled_from([1, 3, 8, 9, 30]))
    act = act_for(parse_format(draw(st.sampled_from(FORMATS))), 2, True)
    rng = np.random.default_rng(k)
    x = (rng.normal(size=(rows, k)) * 10.0 ** rng.integers(-3, 3, (rows, 1))).astype(np.float32)
    x[0, : k // 2] = 0  # a group of zeros
    w, b = rng.normal(size=k).astype(np.float32), rng.normal(size=k).astype(np.float32)
    bias, f32, at = draw(st.booleans()), ActFormat("f32"), (0, -(-4 * k // 64) * 64, 0)
    calls = [Call(Quantize(k, act), 1, 2), Call(RmsNorm(k, 1e-5, act), 1, 3), Call(RmsNorm(k, 1e-5, f32), 1, 4)]
    calls += [Call(LayerNorm(k, 1e-5, bias, f32), 1, 5, at), Call(LayerNorm(k, 1e-5, bias, act), 1, 6, at)]
    weights = w.tobytes() + bytes(at[1] - 4 * k) + b.tobytes() + bytes(64)
    sizes = [4 * k, act.row_bytes(k), act.row_bytes(k), 4 * k, 4 * k, act.row_bytes(k)]
    slots = run(calls, sizes, rows, {1: x}, weights, target)
    normed = RmsNorm.reference(x, w, 1e-5)
    np.testing.assert_allclose(slots[4].view(np.float32), normed, rtol=2e-5, atol=1e-6)
    expected = LayerNorm.reference(x, w, b if bias else None, 1e-5)
    np.testing.assert_allclose(slots[5].view(np.float32), expected, rtol=2e-5, atol=2e-5)
    for slot, values in ((slots[2], x), (slots[3], normed), (slots[6], expected)):
        got, step = (
            decode_act(slot, act, k),
            np.abs(values).max(1, keepdims=True) / {"f32": 1e5, "bf16": 128, "q8": 127}[act.kind],
        )
        assert (np.abs(got - values) <= 0.51 * step + 1e-6).all()
        assert np.isfinite(got).all()


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
@pytest.mark.parametrize("name", FORMATS)
def test_embedding(target: Target, name: str) -> None:
    n, k = 37, 77
    layout = layout_for(target, n, k, name)
    raw = stored(np.random.default_rng(0).normal(size=(n, k)).astype(np.float32), layout).tobytes()
    ids = np.array([0, 36, 5, 5, 16, 15, 31], np.int32)
    slots = run([Call(Embedding(n, k, layout, 0.5), 0, 1)], [4 * k], len(ids), {}, raw + bytes(64), target, ids)
    expected = Embedding.reference(ids, layout.decode(raw), 0.5)
    np.testing.assert_allclose(slots[1].view(np.float32), expected, rtol=1e-6, atol=1e-7)

"""Weight layouts: what is encoded is what is decoded, and the kernels' assumptions about sizes hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.codegen.layouts import TiledLayout, fit_group, parse_format, parse_layout, stored, to_bf16, to_f32
from ferrum.codegen.layouts.activations import parse_act
from ferrum.codegen.layouts.quantize import quantize_groups, quantize_spans
from ferrum.codegen.policy import TargetPolicy
from ferrum.codegen.target import parse_target
from ferrum.errors import FerrumError

FORMATS = (
    "f32", "bf16", "int8-g32", "int8-g64", "int8-g128", "int6-g32", "int6-g64", "int6k-g16", "int5-g32", "int5m-g32", "int5k-g32",
    "int4-g32", "int4-g64", "int4a-g32", "int4k-g32", "int4m-g32", "int4s-g32",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    halves = data.draw(st.sampled_from([1, 2]))
    n = data.draw(st.integers(1, 70)) * halves
    n += n == 1
    k, lanes = data.draw(st.integers(1, 150)), data.draw(st.sampled_from([4, 8, 16]))
    fmt = parse_format(data.draw(st.sampled_from(FORMATS)))
    layout = TiledLayout(n, k, fmt, lanes, data.draw(st.sampled_from([2, 4])), halves)
    w = np.random.default_rng(n * 1000 + k).normal(size=(n, k)).astype(np.float32)
    raw = stored(w, layout)
    assert len(raw) == layout.nbytes
    assert parse_layout(layout.name, fmt.name, (n, k)) == layout
    got = layout.decode(raw.data)
    if fmt.kind == "f32":
        assert np.array_equal(got, w)
    elif fmt.kind == "bf16":
        assert np.array_equal(got, to_f32(to_bf16(w)))
    else:
        # half a step of the largest possible scale, more where the scale was shrunk for a smaller total error
        limit = {8: 0.02, 6: 0.08, 5: 0.16, 4: 0.32}[fmt.bits] * np.abs(w).max()
        assert np.abs(got - w).max() <= limit
    ids = np.random.default_rng(1).integers(0, n, 9)
    assert np.array_equal(layout.decode(raw.data, ids), got[ids])


@pytest.mark.parametrize(
    "name", ["", "unit8x4", "unit0x4h1", "rows16h0", "row", "int8", "int8-g0", "f64", "q8-g32", "f32 ", "9" * 400]
)
def test_names_that_are_none_are_refused(name: str) -> None:
    """They may come from a dump that somebody edited."""
    for parse in (lambda: parse_layout(name, "bf16", (16, 32)), lambda: parse_format(name), lambda: parse_act(name)):
        with pytest.raises(FerrumError) as caught:
            parse()
        assert caught.value.code == "graph-text" and len(str(caught.value)) < 200
    with pytest.raises(FerrumError, match="no layout of 4 axes"):
        parse_layout("unit8x4h1", "bf16", (2, 2, 16, 32))


def test_bf16_rounds_to_nearest_even_as_torch() -> None:
    import torch

    x = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 1e3
    x[:4] = [0.0, -0.0, 1.00390625, 1.01171875]  # the last two are ties
    assert np.array_equal(to_f32(to_bf16(x)), torch.from_numpy(x).bfloat16().float().numpy())


@pytest.mark.parametrize("name", ["int4-g32", "int4s-g32", "int4a-g32"])
def test_scales_lower_the_squared_error_of_plain_rounding(name: str) -> None:
    fmt = parse_format(name)
    w = np.random.default_rng(0).standard_t(4, size=(64, 256)).astype(np.float32)
    q, scale, zero = quantize_groups(w, fmt)
    base = np.float32(fmt.zero) if zero is None else zero.astype(np.float32)[..., None]
    got = (q.reshape(64, -1, fmt.group) - base) * scale.astype(np.float32)[..., None]
    groups = w.reshape(64, -1, fmt.group)
    if zero is None:
        step, base = np.abs(groups).max(-1, keepdims=True) / 8, np.float32(8)
    else:
        low = groups.min(-1, keepdims=True)
        step = (groups.max(-1, keepdims=True) - low) / 15
        base = np.rint(-low / step)
    plain = (np.clip(np.rint(groups / step + base), 0, 15) - base) * step
    assert np.square(got - groups).sum() < 0.97 * np.square(plain - groups).sum()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_whole_scales_make_bytes_and_cost_little(group: int, scale: float) -> None:
    fmt, rng = parse_format(f"int4-g{group}"), np.random.default_rng(0)
    w = (scale * rng.standard_t(4, size=(64, 512))).astype(np.float32)
    w[:, :group] *= np.float32(1e-3)  # beside it the largest scale is far too coarse a measure
    q, word, step = quantize_spans(w, fmt, fmt.span(512))
    whole = word[..., None].view(np.uint8)[..., : 128 // group].reshape(64, -1).astype(int)
    value = (q.reshape(64, -1, group).astype(int) - (8 - (whole >> 7))[..., None]) * (whole & 15)[..., None]
    assert value.min() >= -128 and value.max() <= 127
    got = value.reshape(64, 4, 128) * to_f32(step)[..., None]
    plain_q, plain_scale, _ = quantize_groups(w / np.float32(scale), fmt)
    plain = (plain_q.reshape(64, -1, group).astype(np.float32) - 8) * plain_scale.astype(np.float32)[..., None]
    error = np.square((got.reshape(w.shape) - w) / scale).sum()
    assert error <= 1.03 * np.square(plain.reshape(w.shape) - w / scale).sum()


def test_a_zero_group_stays_zero() -> None:
    for name in FORMATS[2:]:
        fmt = parse_format(name)
        layout = TiledLayout(8, 64, fmt, 4, 2)
        assert not layout.decode(stored(np.zeros((8, 64), np.float32), layout).data).any()


@pytest.mark.parametrize(("k", "group"), [(1024, 128), (192, 64), (96, 32), (77, 32), (3072, 128)])
def test_groups_fit_the_width(k: int, group: int) -> None:
    assert fit_group(128, k) == group


@pytest.mark.parametrize(("k", "group"), [(1024, 64), (576, 64), (96, 32), (100, 32)])
@pytest.mark.parametrize("name", ["cpu-x86_64", "cpu-avx2", "cpu-avx512-vnni", "cpu-arm64-dotprod", "cuda-sm89", "metal-m1"])
def test_int8_has_groups_of_64_where_they_fit(name: str, k: int, group: int) -> None:
    """Weights everywhere, and activations where they are rounded."""
    target = parse_target(name)
    choice = TargetPolicy(target, "int8").matrix("body", 8, k, 1, None)
    assert choice.format == f"int8-g{group}"
    assert choice.act == (f"q8-g{group}-z128" if target.device == "cpu" else "bf16")
    head = TargetPolicy(target, "int4-g32").matrix("head", 8, k, 1, None).format
    assert target.device == "cpu" or head == f"int8-g{group}"

"""The weights' layout on GPUs: values survive, rows are where kernels look for them; targets by name and capability."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ferrum.codegen.layouts import RowLayout, float8, parse_format, parse_layout, stored
from ferrum.codegen.target import GPU_TARGETS, cuda_target, parse_targets
from ferrum.devices.cuda_archs import parse_arch, runs_on
from ferrum.errors import FerrumError

# Largest error of a value, relative to the largest of all: half a step, or what is cut off to make the other steps smaller.
STEPS = {"f32": 0.0, "bf16": 2**-8, "fp8": 2**-4, "int8": 1 / 250, "int4": 0.3, "int4a": 0.3, "int4s": 0.3}
FORMATS = (
    "f32", "bf16", "fp8", "int8-g32", "int8-g64", "int8-g128", "int4-g32", "int4-g64", "int4-g128", "int4a-g32", "int4s-g32",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "k", "halves"), ((1, 1, 1), (37, 203, 1), (46, 96, 2), (64, 512, 2)))
def test_values_survive(name: str, n: int, k: int, halves: int) -> None:
    layout = RowLayout(n, k, parse_format(name), halves)
    assert parse_layout(layout.name, name, (n, k)) == layout
    w = np.random.default_rng(n).normal(size=(n, k)).astype(np.float32)
    raw = stored(w, layout)
    assert raw.nbytes == layout.nbytes and layout.row_bytes % 64 == 0
    got = layout.decode(raw.data)
    assert np.abs(got - w).max() <= STEPS[layout.format.kind] * np.abs(w).max() + 1e-7
    assert np.abs(got - w).mean() <= STEPS[layout.format.kind] / 1.5 * np.abs(w).max() + 1e-7
    chosen = np.array([n - 1, 0, n // 2])
    assert np.array_equal(layout.decode(raw.data, chosen), got[chosen])


def test_gate_and_up_are_neighbours() -> None:
    """Eight rows of the first half, then the same eight of the second."""
    layout = RowLayout(48, 32, parse_format("bf16"), 2)
    assert layout.stored_row(np.array([0, 7, 8, 24, 31, 32])).tolist() == [0, 7, 16, 8, 15, 24]


def test_nibbles_give_pairs() -> None:
    """word >> 4i & 0x000f000f holds k + 2i below and k + 2i + 1 above; a lane's words are 32 apart in k."""
    layout = RowLayout(1, 128, parse_format("int4-g128"))
    w = (np.arange(128) % 16 - 8).astype(np.float32)[None]
    words = stored(w, layout)[:64].view(np.uint32).reshape(4, 4)  # lane, word
    sign = np.sign(stored(w, layout)[layout.scale_offset :][:2].view(np.float16)[0])
    values = np.where(sign > 0, w[0] + 8, 8 - w[0]).clip(0, 15)
    for lane in range(4):
        for word in range(4):
            for i in range(4):
                pair = int(words[lane, word]) >> 4 * i & 0x000F000F
                k = 32 * word + 8 * lane + 2 * i
                assert abs((pair & 15) - values[k]) <= 1 and abs((pair >> 16) - values[k + 1]) <= 1


def test_8_bit_floats_are_those_of_the_standard() -> None:
    """Every byte but the two NaNs, ties, numbers below the smallest normal one, and what is too large."""
    bits = np.array([b for b in range(256) if b & 0x7F != 0x7F], np.uint8)
    values = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(float8.values_of(bits), values) and np.array_equal(float8.bits_of(values), bits)
    random = np.random.default_rng(0)
    x = np.concatenate([values, (values[1:] + values[:-1]) / 2, random.normal(size=9999) * 10.0 ** random.uniform(-4, 3, 9999)])
    x = x.astype(np.float32)
    expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(float8.round_e4m3(x), expected)


def test_8_bit_floats_take_the_best_scale() -> None:
    """Better than the scale that only fits the largest weight, row by row; a row of zeros stays one."""
    w = (np.random.default_rng(0).normal(size=(40, 500)) * 10.0 ** np.arange(-20, 20)[:, None]).astype(np.float32)
    w[3] = 0
    bits, scale = float8.quantize_rows(w)
    simple = np.abs(w).max(-1, keepdims=True) / 448
    error = [np.square(found - w).sum(-1) for found in (
        float8.values_of(bits) * scale[:, None], float8.round_e4m3(np.divide(w, simple, out=w * 0, where=simple > 0)) * simple)]
    assert (error[0] <= error[1] * 1.0001).all() and error[0][3] == 0 and (error[0] < 0.99 * error[1]).mean() > 0.3


def test_targets_by_name() -> None:
    assert [t.name for t in parse_targets("cuda-sm80, metal-m1,cpu-avx2")] == ["cuda-sm80", "metal-m1", "cpu-avx2"]
    for bad in ("cuda-sm80,cuda-sm80", "cuda-sm90a", "cuda-sm80,"):
        with pytest.raises(FerrumError):
            parse_targets(bad)
    assert len({t.name for t in GPU_TARGETS}) == len(GPU_TARGETS) == 15


@pytest.mark.parametrize(
    ("capability", "name"),
    (((7, 5), "cuda-sm75"), ((8, 0), "cuda-sm80"), ((8, 6), "cuda-sm86"), ((8, 7), "cuda-sm87"), ((8, 9), "cuda-sm89"),
     ((9, 0), "cuda-sm90"), ((10, 0), "cuda-sm100"), ((10, 3), "cuda-sm103"), ((12, 0), "cuda-sm120"), ((12, 1), "cuda-sm121"),
     ((7, 0), ""), ((7, 2), ""), ((8, 8), ""), ((11, 0), ""), ((13, 0), "")),
)  # fmt: skip
def test_targets_by_capability(capability: tuple[int, int], name: str) -> None:
    found = cuda_target(*capability)
    assert (found.name if found else "") == name
    assert not found or runs_on(capability, found.arch)


def test_no_target_is_for_one_chip_only() -> None:
    """Until a kernel needs an instruction of one, code runs on the later chips of its generation."""
    for target in (t for t in GPU_TARGETS if t.device == "cuda"):
        parsed = parse_arch(target.arch)
        assert parsed and parsed[1] == "" and target.name == f"cuda-{target.arch.replace('_', '')}"
        assert cuda_target(*parsed[0]) is target and target.cards


def test_every_target_is_told_of_in_the_docs() -> None:
    """With the cards it is for."""
    text = (Path(__file__).parents[2] / "docs/targets.md").read_text(encoding="utf-8")
    for target in (t for t in GPU_TARGETS if t.device == "cuda"):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{target.name}` |")]
        assert all(card in row for card in target.cards.split(", ")), row

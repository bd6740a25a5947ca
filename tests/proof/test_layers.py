"""Sketches of values, the choice of the layer at fault, and the checks of ``layers.json``."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ferrum.errors import FerrumError
from ferrum.pack.layers import PROJECTIONS, LayerPoint, LayerTest, read_layer_test
from ferrum.proof.probe import LayerReport
from ferrum.proof.sketch import deviation, sketch, stored


def point(**changes: object) -> LayerPoint:
    plain = LayerPoint(layer=2, part="mlp.down_proj", launch=0, slot=0, width=4, row_bytes=16, dtype="f32")
    return msgspec.structs.replace(plain, **changes)


def layer_test(points: int, cases: int = 1) -> LayerTest:
    numbers = [1.0] * (1 + PROJECTIONS)
    made = [point(layer=i, launch=i) for i in range(points)]
    return LayerTest(tolerance=0.04, limit=0.2, points=made, sketches=[[numbers] * points for _ in range(cases)])


def test_a_sketch_tells_the_distance() -> None:
    """Within the spread of eight sums, over four orders of magnitude, and for arrays that are much alike."""
    random = np.random.default_rng(0)
    value = random.standard_normal((33, 640)).astype(np.float32)
    value[:, 7] *= 300  # as the residual of large models
    for true in (1e-4, 1e-2, 1.0):
        ratios = []
        for _ in range(20):
            noise = random.standard_normal(value.shape)
            other = value + true * noise / np.linalg.norm(noise) * np.linalg.norm(value)
            ratios.append(deviation(sketch(other), stored(sketch(value))) / true)
        assert min(ratios) > 0.3 and max(ratios) < 2 and 0.85 < np.sqrt(np.mean(np.square(ratios))) < 1.15


def test_parts_add_up() -> None:
    value = np.random.default_rng(1).standard_normal((9, 24))
    parts = sketch(value[:4]) + sketch(value[4:], 4 * 24)
    assert np.allclose(parts, sketch(value), rtol=1e-12)


def test_the_signs_are_those_of_the_format() -> None:
    """docs/pack-format.md promises them: splitmix64 of the index, low bits, the highest of the eight first."""
    assert sketch(np.ones(1))[1:].tolist() == [1, -1, 1, -1, 1, 1, 1, 1]  # splitmix64(0) = 0xe220a8397b1dcdaf
    one_hot = np.zeros(3)
    one_hot[1] = 2
    assert sketch(one_hot)[0] == 4 and set(np.abs(sketch(one_hot)[1:])) == {2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(bad: float) -> None:
    value = np.ones((2, 4), np.float32)
    reference = stored(sketch(value))
    value[1, 1] = bad
    with np.errstate(all="ignore"):
        assert deviation(sketch(value), reference) == np.inf


def test_rows_of_both_formats() -> None:
    values = np.array([[1.0, -2.5], [0.375, 3.0]], np.float32)
    padded = np.zeros((2, 8), np.float32)
    padded[:, :2] = values
    memory = np.frombuffer(padded.tobytes() + b"rest", np.uint8)
    assert (point(width=2, row_bytes=32).rows(memory, 2) == values).all()
    halves = (padded.view(np.uint32) >> 16).astype(np.uint16)
    assert (point(width=2, row_bytes=16, dtype="bf16").rows(np.frombuffer(halves.tobytes(), np.uint8), 2) == values).all()


@pytest.mark.parametrize(
    ("deviations", "first"),
    [
        ([0.001, 0.002, 0.003], -1),
        ([0.001, 0.05, 0.3], 1),  # the fault, then what it does
        ([0.03, 0.041, 0.05, 0.4], 3),  # rounding creeps over the tolerance, the fault jumps
        ([0.03, 0.041, 0.05], 1),
        ([0.001, np.inf, np.inf], 1),
        ([0.5, 0.4], 0),
    ],
)
def test_the_first_layer_at_fault(deviations: list[float], first: int) -> None:
    report = LayerReport(layer_test(len(deviations)), deviations)
    assert report.first == first
    assert ("agree" in str(report)) if first < 0 else str(report).startswith(f"layer {first}: mlp.down_proj is the first")
    assert report.passes == (max(deviations) <= 0.2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"limit": 0.01}, "tolerance"),
        ({"sketches": []}, "sketches"),
        ({"sketches": [[[1.0] * 9]]}, "sketches[0]"),
        ({"sketches": [[[1.0] * 9, [1.0] * 8]]}, "sketches[0]"),
        ({"sketches": [[[1.0] * 9, ["x"]]]}, "sketches"),
        ({"points": [point(launch=5), point(launch=4)]}, "points[1]"),
        ({"points": [point(width=5), point()]}, "points[0]"),
        ({"points": [point(dtype="bf16", row_bytes=7), point()]}, "points[0]"),
        ({"points": [point(slot=-1), point()]}, "points[0]"),
        ({"more": 1}, "more"),
    ],
)
def test_a_bad_member_is_named(change: dict[str, object], named: str) -> None:
    raw = msgspec.to_builtins(layer_test(2)) | msgspec.to_builtins(change)
    with pytest.raises(FerrumError) as caught:
        read_layer_test(msgspec.json.encode(raw), 1, "x.fpk: layers.json")
    assert named in str(caught.value) and "x.fpk: layers.json" in str(caught.value)

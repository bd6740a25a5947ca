"""Every block type means what the format's own package says, bit for bit, by values and by blocks, whole and in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.graphs.expressions import expression as e
from ferrum.graphs.expressions.evaluate import Arrays, ExprRows, evaluate
from ferrum.graphs.expressions.ggml.points import codebook
from ferrum.graphs.expressions.ggml.table import BLOCKS
from ferrum.graphs.expressions.schemes import dequantized
from ferrum.graphs.weights.gguf_file import BLOCKED, PLAIN
from tests.gguf.maker import random_blocks

# The package knows their sizes and cannot decode them; their formulas are ggml's.
_WRITTEN = ("q1_0", "q8_k")


def wanted(kind: str, raw: np.ndarray) -> np.ndarray:
    if kind == "q8_k":
        blocks = raw.reshape(-1, 292)
        values = np.ascontiguousarray(blocks[:, 4:260]).view("i1").astype(np.float32)
        return (values * np.ascontiguousarray(blocks[:, :4]).view("<f4")).reshape(len(raw), -1)
    if kind == "q1_0":
        blocks = raw.reshape(-1, 18)
        signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
        return (signs * np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)).reshape(len(raw), -1)
    return dequantize(raw, GGMLQuantizationType[kind.upper()])


def source(kind: str, raw: np.ndarray) -> ExprRows:
    return ExprRows(dequantized(kind, e.Tensor("w", raw.shape, "u8")), Arrays({"w": raw}))


def test_all_types_of_the_package_are_known() -> None:
    numbers = {kind.value for kind in GGMLQuantizationType} - {GGMLQuantizationType.Q8_1}  # activations, never in a file
    assert numbers == set(BLOCKED) | set(PLAIN)
    for number, kind in BLOCKED.items():
        assert GGMLQuantizationType(number).name.lower() == kind
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (BLOCKS[kind].size, BLOCKS[kind].nbytes)


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_values_have_the_same_bits(kind: str) -> None:
    raw = random_blocks(kind, 12, 512, seed=7)
    found = source(kind, raw).values(slice(0, 12))
    assert found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_array_equal(found.view(np.uint32), wanted(kind, raw).view(np.uint32))


@pytest.mark.parametrize("kind", sorted(set(BLOCKS) - set(_WRITTEN)))
def test_any_bytes_have_the_same_values(kind: str) -> None:
    """Infinite and subnormal scales too; what is no number need not be the same one."""
    raw = np.random.default_rng(3).integers(0, 256, (64, BLOCKS[kind].nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        found, right = source(kind, raw).values(slice(0, 64)), wanted(kind, raw)
    np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(right)]), np.signbit(right[~np.isnan(right)]))


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_blocks_are_the_values(kind: str) -> None:
    raw = random_blocks(kind, 6, 512, seed=1)
    rows = source(kind, raw)
    found, blocked = rows.blocks(slice(2, 5)), rows.blocked
    assert blocked is not None and found.size == blocked.size == BLOCKS[kind].group and (found.mins is not None) == blocked.mins
    np.testing.assert_array_equal(found.values(), wanted(kind, raw)[2:5])
    assert found.codes.dtype == np.int8
    low = 0 if blocked.mins else -(1 << (blocked.bits - 1))
    assert found.codes.min() >= low and found.codes.max() < low + (1 << blocked.bits)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_piece_is_the_piece_of_the_whole(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(BLOCKS)))
    raw = random_blocks(kind, 4, 512, seed=data.draw(st.integers(0, 9)))
    box = []
    for size in (4, 512):
        start = data.draw(st.integers(0, size - 1))
        box.append(slice(start, data.draw(st.integers(start + 1, size)), data.draw(st.integers(1, 3))))
    rows = source(kind, raw)
    np.testing.assert_array_equal(evaluate(rows.expr, rows.reader, tuple(box)), wanted(kind, raw)[box[0], box[1]])


def test_codebooks_are_sets_of_points() -> None:
    sizes = {"iq2_xxs": 256, "iq2_xs": 512, "iq2_s": 1024, "iq3_xxs": 256, "iq3_s": 512, "iq1": 2048}
    for name, count in sizes.items():
        points = codebook(name)
        assert len(points) == count == len(np.unique(points, axis=0)) and not points.flags.writeable

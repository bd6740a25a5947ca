"""Joined matrices whose parts are quantized in several ways become one for each, and the graph means what it meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from ferrum.graphs.expressions.expression import Blocked
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.passes import apart
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import faults
from tests.gguf.maker import random_blocks

KINDS = {"q": ("q4_k", 6), "k": ("q4_k", 2), "v": ("q6_k", 4)}
BYTES = {"q4_k": 144, "q6_k": 210}
PARTS = ", ".join(f'dequant({n}: u8[{rows}, {BYTES[kind]}], scheme="{kind}", size=256)' for n, (kind, rows) in KINDS.items())
BIAS = "param att.q+k+v.bias: f32[12] from(cat(b[8], c[4], axis=0))\n"


def text(inputs: str = "x, att.q+k+v.weight, att.q+k+v.bias", attrs: str = "has_bias=true, has_residual=false") -> str:
    return (
        f"graph g\ninput x: f32[tokens, 256]\nparam att.q+k+v.weight: f32[12, 256] from(cat({PARTS}, axis=0))\n"
        f'{BIAS if "bias" in inputs else ""}y: f32[tokens, 12] = linear({inputs}) {{activation="", {attrs}}}\nreturn y\n'
    )


@dataclass(frozen=True)
class Keeper:
    answer: bool

    def apart(self, blocked: Sequence[Blocked | None]) -> bool:
        assert [each.scheme if each else "" for each in blocked] == ["q4_k", "q6_k"]  # neighbours that are alike are one
        return self.answer


def test_parts_are_stored_apart_and_their_products_joined() -> None:
    before = parse_graph(text())
    after = apart.run(before, Keeper(True))
    assert faults(after) == []
    assert [node.op for node in after.nodes] == ["linear", "linear", "cat"] and after.outputs == before.outputs
    assert [(p.name, p.shape) for p in after.params] == [
        ("att.q+k+v.0.weight", (8, 256)), ("att.q+k+v.1.weight", (4, 256)),
        ("att.q+k+v.0.bias", (8,)), ("att.q+k+v.1.bias", (4,)),
    ]  # fmt: skip
    assert [p.weight.type.blocked.scheme for p in after.params[:2] if p.weight and p.weight.type.blocked] == ["q4_k", "q6_k"]
    random = np.random.default_rng(0)
    arrays = {name: random_blocks(kind, rows, 256, seed=rows) for name, (kind, rows) in KINDS.items()}
    arrays |= {"b": random.normal(size=8), "c": random.normal(size=4)}
    given = {"x": random.normal(size=(3, 256))}
    wanted, found = (interpret(graph, given, ArrayWeights(arrays), np.float64)["y"] for graph in (before, after))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_they_stay_together_where_that_is_wanted() -> None:
    graph = parse_graph(text())
    assert apart.run(graph, Keeper(False)) == graph


USED_TWICE = 'more: f32[tokens, 12] = linear(x, att.q+k+v.weight) {activation="", has_bias=false, has_residual=false}\n'


@pytest.mark.parametrize(
    ("inputs", "attrs", "more"),
    [
        ("x, att.q+k+v.weight, z", "has_bias=false, has_residual=true", ""),  # an addition in place
        ("x, att.q+k+v.weight", "has_bias=false, has_residual=false", USED_TWICE),
    ],
)
def test_others_are_left_as_they_are(inputs: str, attrs: str, more: str) -> None:
    written = text(inputs, attrs).replace("256]\n", "256]\ninput z: f32[tokens, 12]\n", 1)
    graph = parse_graph(written.replace("return", f"{more}return"))
    assert faults(graph) == [] and apart.run(graph, Keeper(True)) == graph

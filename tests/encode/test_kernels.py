"""Kernels of whole sequences on CPUs beside the interpreter, over drawn shapes and sequences; no bit depends on the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.infer_pool import HOWS
from ferrum.graphs.ir import Graph, Node, Param, Value
from ferrum.graphs.passes.tail import PICKED
from ferrum.graphs.rewrite import Scope
from ferrum.graphs.verify import verify
from tests.codegen.small_graphs import Compiled
from tests.codegen.test_generic_kernels import HERE, draw_settings

VOCAB = 40


def graph_of(widths: dict[str, tuple[int, ...]], op: str, pooling: bool = False, **attrs: Any) -> Graph:
    """An ``op`` on rows that are looked up in a table for each of its inputs."""
    shapes = {name: (VOCAB, math.prod(width)) for name, width in widths.items()}
    params = [Param(Value(name, "f32", shape), Tensor(name, shape)) for name, shape in shapes.items()]
    inputs = (Value("tokens", "i32", ("tokens",)), Value("positions", "i32", ("tokens",)), *([PICKED] if pooling else []))
    s = Scope(Graph("drawn", inputs, tuple(params), (), ()), ())
    s.root = Node("drawn", (), (Value("drawn", "f32", ()),))
    rows = []
    for name, width in widths.items():
        found = s.emit("embedding", "tokens", name, scale=1.0)
        rows.append(found if len(width) == 1 else s.emit("reshape", found, shape=("tokens", *width)))
    out = s.emit(op, *rows, *([PICKED.name] if pooling else []), **attrs)
    return verify(Graph("drawn", inputs, tuple(s.params.values()), tuple(s.nodes.values()), (out,)))


def compiled(graph: Graph, seed: int) -> Compiled:
    random = np.random.default_rng(seed)
    weights = {p.name: random.normal(size=p.shape).astype(np.float32) for p in graph.params}
    return Compiled(graph, weights, HERE[-1])


def check(made: Compiled, lengths: list[int], random: np.random.Generator) -> None:
    """The rows of sequences of these lengths: as the interpreter has them, and bit by bit those of each sequence alone."""
    sequences = [random.integers(0, VOCAB, length).tolist() for length in lengths]
    tokens, starts = sum(sequences, []), np.concatenate([[0], np.cumsum(lengths)]).tolist()
    found = made.run(tokens, starts=starts, threads=2)
    np.testing.assert_allclose(found, made.expected(tokens, starts=starts), rtol=2e-5, atol=2e-5)
    alone = [made.run(sequence, starts=[0, len(sequence)], threads=1) for sequence in sequences]
    np.testing.assert_array_equal(found, np.concatenate(alone))


@pytest.mark.parametrize("examples", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_attention(examples: int) -> None:
    draw_settings(examples)(given(data=st.data())(drawn_attention))()


def drawn_attention(data: st.DataObject) -> None:
    draw = data.draw
    kv, width, values = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 5, 8, 32])), draw(st.sampled_from([1, 4, 33]))
    heads = kv * draw(st.sampled_from([1, 2]))
    graph = graph_of(
        {"q": (heads, width), "k": (kv, width), "v": (kv, values)}, "attend", causal=draw(st.booleans()), operands=(),
        window=draw(st.sampled_from([0, 1, 2, 17, 64, 100])), scale=width**-0.5, softcap=draw(st.sampled_from([0.0, 1.5])),
    )  # fmt: skip
    made, random = compiled(graph, draw(st.integers(0, 99))), np.random.default_rng(draw(st.integers(0, 99)))
    for _ in range(3):
        check(made, draw(st.lists(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 130]), min_size=1, max_size=4)), random)


@pytest.mark.parametrize("how", ["mean", "max", *(pytest.param(how, marks=pytest.mark.slow) for how in HOWS[:2] + HOWS[4:])])
def test_pooling(how: str) -> None:
    made, random = compiled(graph_of({"x": (70,)}, "pool", pooling=True, how=how), 3), np.random.default_rng(4)
    for lengths in ([1], [3, 1, 40], [7, 7], [200, 5]):
        check(made, lengths, random)

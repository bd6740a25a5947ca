"""The interpreter: ragged batches, kept keys and values, weights by rows, and declared shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ferrum.graphs import numpy_ops
from ferrum.graphs.interpret import ArrayWeights, KvState, interpret, reference_greedy, reference_logits
from ferrum.graphs.ir import Graph, Param
from ferrum.graphs.numpy_ops import KERNELS
from ferrum.graphs.numpy_run import Array, Rows
from ferrum.graphs.ops import OPS
from ferrum.graphs.pipeline import load_graph
from ferrum.graphs.text import parse_graph
from tests.graphs.conftest import GOLDENS

PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9])


@pytest.fixture
def graph() -> Graph:
    text = (GOLDENS / "stages" / "12-fuse_paged.txt").read_text(encoding="utf-8")
    return parse_graph(text.replace("window=0", "window=4"))


@pytest.fixture
def weights(graph: Graph) -> ArrayWeights:
    random = np.random.default_rng(0)
    shapes = {p.name: p.shape for p in load_graph(GOLDENS / "stages" / "01-import.txt").params if p.weight}
    return ArrayWeights({name: random.standard_normal(shape) * 0.4 for name, shape in shapes.items()})  # type: ignore[arg-type]


def step(graph: Graph, weights: Any, kv: KvState, parts: list[list[int]], done: list[int]) -> Array:
    starts = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
    inputs = {
        "tokens": np.array(sum(parts, []), np.int32),
        "positions": np.concatenate([np.arange(d, d + len(p)) for d, p in zip(done, parts, strict=True)]).astype(np.int32),
        "sample_rows": np.arange(starts[-1], dtype=np.int32),
    }
    return interpret(graph, inputs, weights, np.float64, kv, starts.tolist(), wanted=graph.outputs[:1])[graph.outputs[0]]


def test_every_op_has_arithmetic() -> None:
    assert set(KERNELS) == set(OPS)


def test_a_ragged_batch_equals_single_sequences(graph: Graph, weights: ArrayWeights) -> None:
    together = step(graph, weights, KvState(), [list(p) for p in PROMPTS], [0, 0, 0])
    alone = [reference_logits(graph, prompt, weights, np.float64) for prompt in PROMPTS]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_equal_the_whole(graph: Graph, weights: ArrayWeights, chunk: int) -> None:
    tokens = list(PROMPTS[2])
    kv, rows = KvState(), []
    for start in range(0, len(tokens), chunk):
        rows.append(step(graph, weights, kv, [tokens[start : start + chunk]], [start]))
    np.testing.assert_allclose(np.concatenate(rows), reference_logits(graph, tokens, weights, np.float64), rtol=1e-12, atol=1e-12)


def test_the_window_hides_what_is_behind_it(graph: Graph, weights: ArrayWeights) -> None:
    """One layer with a window of 4: the last row sees the last four tokens and nothing before them."""
    a = reference_logits(graph, [1, 2, 3, 4, 5, 6], weights, np.float64, last_only=True)
    b = reference_logits(graph, [9, 8, 3, 4, 5, 6], weights, np.float64, last_only=True)
    c = reference_logits(graph, [1, 2, 9, 4, 5, 6], weights, np.float64, last_only=True)
    assert a.shape == (1, 40)
    np.testing.assert_allclose(a, b, rtol=1e-12)
    assert np.abs(a - c).max() > 1e-3


def test_greedy_follows_the_logits(graph: Graph, weights: ArrayWeights) -> None:
    found, rows = reference_greedy(graph, PROMPTS, 4, weights, np.float64)
    for prompt, continuation, row in zip(PROMPTS, found, rows, strict=True):
        ids = list(prompt)
        alone = reference_logits(graph, ids, weights, np.float64, last_only=True)[0]
        np.testing.assert_allclose(row, alone, rtol=1e-12, atol=1e-14)
        for token in continuation:
            assert token == int(reference_logits(graph, ids, weights, np.float64)[-1].argmax())
            ids.append(token)


def test_large_weights_are_read_in_pieces(graph: Graph, weights: ArrayWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    want = reference_logits(graph, [1, 2, 3], weights)

    class Counting:
        largest = 0

        def get(self, param: Param) -> Array:
            assert len(param.value.shape) == 1, "a matrix was read as a whole"
            return weights.get(param)

        def rows(self, param: Param, ids: Rows) -> Array:
            rows = weights.rows(param, ids)
            Counting.largest = max(Counting.largest, rows.nbytes)
            return rows

    monkeypatch.setattr(numpy_ops, "CHUNK_BYTES", 1000)
    got = reference_logits(graph, [1, 2, 3], Counting())
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert 0 < Counting.largest <= 2000  # float64 arrays, chunks counted in float32


def test_dtypes(graph: Graph, weights: ArrayWeights) -> None:
    assert reference_logits(graph, [1, 2], weights).dtype == np.float32
    assert reference_logits(graph, [1, 2], weights, np.float64).dtype == np.float64


def test_inputs_must_agree(graph: Graph, weights: ArrayWeights) -> None:
    good = {"tokens": np.zeros(3, np.int32), "positions": np.arange(3, dtype=np.int32), "sample_rows": np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match="positions"):
        interpret(graph, good | {"positions": np.arange(2, dtype=np.int32)}, weights, wanted=graph.outputs[:1])
    with pytest.raises(ValueError, match="axes"):
        interpret(graph, good | {"tokens": np.zeros((1, 3), np.int32)}, weights, wanted=graph.outputs[:1])


def test_values_can_be_kept(graph: Graph, weights: ArrayWeights) -> None:
    inputs = {"tokens": np.zeros(3, np.int32), "positions": np.arange(3, dtype=np.int32), "sample_rows": np.zeros(1, np.int32)}
    out = interpret(graph, inputs, weights, keep=["paged_attention"], wanted=graph.outputs[:1])
    assert out["paged_attention"].shape == (3, 64)
    assert set(out) == {"paged_attention", graph.outputs[0]}

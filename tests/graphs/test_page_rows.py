"""Paging by sizes: what a token computes of itself gives the same rows among other sequences; what mixes tokens is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import canonicalize, page_attention, tail
from ferrum.graphs.text import parse_graph
from ferrum.graphs.verify import verify
from tests.graphs.test_aten import CASES, ROWS, WIDTH

MIXING = {"cumsum of tokens", "bmm"}
LENGTHS = (3, 1, 5)


def numbered(x: Tensor) -> Tensor:
    """By place: counted, and as a running sum of ones."""
    seq = torch.ones(x.shape[:2], dtype=torch.long).cumsum(1) + torch.arange(2, 2 + 3 * x.shape[1], 3)
    return x * seq[..., None]


def folded(x: Tensor) -> Tensor:
    """Tokens and their parts as one axis, and back; heads in front of the tokens."""
    rows = x.reshape(-1, 3, 4).repeat_interleave(2, 0) * 2
    heads = x.reshape(*x.shape[:2], 3, 4).transpose(1, 2)
    heads = (heads @ heads.new_ones(4, 4)).reshape(-1, x.shape[1], 4) + 1
    return rows.reshape(*x.shape[:2], 24) + heads.reshape(x.shape[0], 3, -1, 4).transpose(1, 2).flatten(2).repeat(1, 1, 2)


class Ended(nn.Module):
    """Cases side by side under an LM head."""

    def __init__(self, cases: list[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.build()
        self.cases, self.embedding = cases, nn.Embedding(ROWS, WIDTH, dtype=torch.float64)
        width = sum(case(torch.ones(2, 3, WIDTH, dtype=torch.float64)).shape[-1] for case in cases)
        self.head = nn.Linear(width, 7, dtype=torch.float64)

    def build(self) -> None:
        """Layers of the cases."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(torch.cat([case(x) for case in self.cases], -1))


GROUPS = {group: [case for name, case in cases.items() if name not in MIXING] for group, cases in CASES.items()}


class OnHeads(Ended):
    """A layer for each of three heads, and one without a bias."""

    def __init__(self) -> None:
        super().__init__([lambda x: self.second(self.first(x.reshape(*x.shape[:2], 3, 4))).flatten(2)])

    def build(self) -> None:
        self.first, self.second = nn.Linear(4, 5, dtype=torch.float64), nn.Linear(5, 2, bias=False, dtype=torch.float64)


@pytest.mark.parametrize("cases", [*GROUPS.values(), [numbered, folded]], ids=[*GROUPS, "forms"])
def test_each_sequence_gets_what_it_gets_alone(cases: list[Callable[[Tensor], Tensor]]) -> None:
    torch.manual_seed(0)
    paged_alike(Ended(cases).eval())


def test_a_layer_on_heads_is_a_product_of_arrays() -> None:
    graph = paged_alike(OnHeads().eval())
    assert [node.output.shape[-1] for node in graph.nodes if node.op == "linear"] == [7]
    assert sum(node.op == "matmul" for node in graph.nodes) == 2


def paged_alike(module: nn.Module) -> Graph:
    """The graph on rows, which says of sequences in one step what ``module`` says of each alone."""
    graph = verify(tail.run(page_attention.run(canonicalize.run(import_module(module)))))
    weights = ArrayWeights({name: parameter.detach().numpy() for name, parameter in module.named_parameters()})
    random = np.random.default_rng(2)
    parts = [random.integers(0, ROWS, length) for length in LENGTHS]
    ends = np.cumsum([0, *LENGTHS])
    inputs = {
        "tokens": np.concatenate(parts).astype(np.int32),
        "positions": np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32),
        "sample_rows": np.arange(ends[-1], dtype=np.int32)[::-1].copy(),
    }
    logits = graph.outputs[:1]
    found = interpret(graph, inputs, weights, np.float64, query_start=ends.tolist(), wanted=logits)[logits[0]][::-1]
    with torch.no_grad():
        wanted = torch.cat([module(torch.from_numpy(part)[None])[0] for part in parts]).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    return graph


def added(x: Tensor) -> Tensor:
    """Rows of all tokens, summed where they say."""
    flat = x.reshape(-1, WIDTH)
    places = (flat[:, 0] * 5).floor().long().remainder(4)
    return x + torch.zeros(4, WIDTH, dtype=x.dtype).index_add(0, places, flat)[0]


@pytest.mark.parametrize(
    "case",
    [
        lambda x: x.cumsum(1),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x.softmax(1),
        lambda x: x + x.sum((0, 1)),
        lambda x: x + x.mean(0, keepdim=True),
        lambda x: (x @ x.transpose(1, 2)).sum(-1, keepdim=True) * x,
        lambda x: (x.transpose(1, 2) @ x).sum(-1)[:, None] + x,
        added,
    ],
)
def test_what_mixes_tokens_is_refused(case: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOps):
        page_attention.run(canonicalize.run(import_module(Ended([case]))))


SCRAMBLED = """graph g
input tokens: i64[batch, seq]
param t: f32[20, 12] from(t)
e: f32[batch, seq, 12] = embedding(tokens, t) {scale=1.0}
p: f32[batch, 12, seq] = permute(e) {order=(0, 2, 1)}
r: f32[batch, seq, 12] = reshape(p)
l: f32[batch, seq, 20] = linear(r, t) {activation="", has_bias=false, has_residual=false}
return l
"""


def test_a_reshape_that_tears_tokens_apart_is_refused() -> None:
    with pytest.raises(UnsupportedOps, match="a reshape of tokens"):
        page_attention.run(verify(parse_graph(SCRAMBLED)))

"""Attention and convolutions as some models write them become attention over pages that says what torch says, at any length."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferrum.graphs.frontend import registered
from ferrum.graphs.frontend.torch_export import import_program
from ferrum.graphs.frontend.traced import exported
from ferrum.graphs.interpret import ArrayWeights, reference_logits
from ferrum.graphs.ir import Graph
from ferrum.graphs.pipeline import run_pipeline

VOCAB, WIDTH, HEADS, LONGEST = 11, 12, 3, 40
LENGTHS = (1, 2, 9, 24)


class Model(nn.Module):
    """An embedding, what a subclass mixes, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.mix(x))

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v [batch, heads, seq, width]."""
        return tuple(t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))


class Multiplied(Model):
    """Scores times a stored 0 or 1, less ten thousand where that is 0."""

    least = -1e4

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Buffer(torch.tril(torch.ones(LONGEST, LONGEST)), persistent=False)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        kept = self.kept[: x.shape[1], : x.shape[1]]
        scores = (q @ k.transpose(2, 3)) / math.sqrt(WIDTH / HEADS) * kept + self.least * (1 - kept)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class HalfMultiplied(Multiplied):
    """What is dropped counts as a score of 0."""

    least = 0.0


class Behind(Model):
    """Biases by distance: the last part of those of the longest sequence."""

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        slopes = 1.0 / torch.pow(2, torch.arange(1, HEADS + 1).float())
        bias = (torch.arange(1 - LONGEST, 1).view(1, 1, LONGEST) * slopes.view(HEADS, 1, 1))[:, :, LONGEST - x.shape[1] :]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(2, 3) * 0.4 + bias).masked_fill(later, torch.finfo(torch.float32).min)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class OfHeads(Model):
    """Values of a token's heads are those that its own heads see of each other."""

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        own = [t.transpose(1, 2) for t in (q, k, v)]
        v = (own[0] @ own[1].transpose(2, 3) * 0.4).softmax(-1) @ own[2]
        return F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True).transpose(1, 2).flatten(2)


class Chunks(Model):
    """Each token sees its own six places."""

    def mix(self, x: Tensor) -> Tensor:
        mask = registered.Mask(True, 6, chunk=True)
        return registered.attention_function(self, *self.heads(x), mask, scaling=0.4)[0].flatten(2)


class Slides(Model):
    """Each channel from its own last values."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, width, groups=WIDTH, padding=width - 1, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.squeeze(1).unsqueeze(1)
        slid = F.conv1d(x.transpose(1, 2), weight, self.conv.bias, padding=weight.shape[-1] - 1, groups=WIDTH)
        return F.silu(slid[..., : x.shape[1]]).transpose(1, 2)


class OfKeys(Model):
    """A number for each key of two heads of keys, which are shared by twice as many of queries, added beside the causal mask."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.queries, self.keys, self.numbers = (nn.Linear(WIDTH, width) for width in (WIDTH, WIDTH, 2))

    def mix(self, x: Tensor) -> Tensor:
        q = self.queries(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.keys(x).chunk(2, -1))
        bias = self.numbers(x).transpose(1, 2)[:, :, None].expand(-1, -1, x.shape[1], -1)
        places = torch.arange(x.shape[1])
        if self.causal:
            bias = bias.masked_fill(places > places[:, None], torch.finfo(torch.float32).min)
        bias = bias[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], 4, x.shape[1], x.shape[1])
        out, _ = registered.attention_function(self, q, k, v, bias, scaling=0.7)
        return out.flatten(2)


def paged_alike(model: Model) -> Graph:
    graph = run_pipeline(import_program(exported(model.eval(), "model")))
    weights = ArrayWeights({name: parameter.detach().numpy() for name, parameter in model.named_parameters()})
    for length in LENGTHS:
        tokens = np.random.default_rng(length).integers(0, VOCAB, length)
        with torch.no_grad():
            wanted = model(torch.from_numpy(tokens)[None])[0].numpy()
        np.testing.assert_allclose(reference_logits(graph, tokens.tolist(), weights), wanted, rtol=1e-5, atol=1e-5)
    return graph


def attention_of(graph: Graph) -> dict[str, object]:
    (node,) = (node for node in graph.nodes if node.op == "paged_attend")
    return dict(node.attrs)


def test_heads_of_a_token_that_see_each_other_are_no_attention_of_tokens() -> None:
    assert attention_of(paged_alike(OfHeads()))["operands"] == ()


def test_scores_that_are_multiplied_by_a_mask() -> None:
    assert attention_of(paged_alike(Multiplied()))["operands"] == ()


def test_scores_that_a_mask_makes_zero_are_no_causal_attention() -> None:
    with pytest.raises(Exception, match="softmax|matmul|pairs tokens"):
        run_pipeline(import_program(exported(HalfMultiplied().eval(), "model")))


def test_the_last_part_of_biases_that_are_counted_from_the_end() -> None:
    assert attention_of(paged_alike(Behind()))["operands"] == ("slopes",)


def test_a_number_of_each_key_is_a_column_more() -> None:
    graph = paged_alike(OfKeys())
    assert attention_of(graph)["operands"] == ()
    assert [state.shape for state in graph.states] == [(2, 4), (2, 3)]


def test_a_number_of_each_key_without_a_mask_is_no_causal_attention() -> None:
    with pytest.raises(Exception, match="attention that is not causal"):
        run_pipeline(import_program(exported(OfKeys(causal=False).eval(), "model")))


def test_chunks_are_windows_of_which_scores_drop_the_chunk_before() -> None:
    assert attention_of(paged_alike(Chunks()))["window"] == 6


@pytest.mark.parametrize(("width", "bias"), [(2, True), (3, False), (7, True)])
def test_a_short_convolution_picks_its_tokens_by_place(width: int, bias: bool) -> None:
    graph = paged_alike(Slides(width, bias))
    assert attention_of(graph)["window"] == width
    assert [(state.kind, state.limit) for state in graph.states] == [("window", width)] * 2


@pytest.mark.parametrize("size", [1, 3, 8, 4096])
def test_a_mask_of_chunks_is_recognized(size: int) -> None:
    from transformers import masking_utils as masks

    with registered.registered():
        found = registered.mask_of(masks.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64)))
    assert found == (registered.Mask(True, 1) if size == 1 else registered.Mask(True, size, chunk=True))

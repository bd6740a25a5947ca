"""Types of `transformers` as graphs: their own modules, traced, compute the logits that they compute in torch."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.frontend import registered
from ferrum.graphs.frontend.registered import Mask, Untraced, mask_of
from ferrum.graphs.frontend.traced import trace_module
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.verify import verify
from tests.graphs.tiny_models import tiny_model

# One of each pattern: windows and soft caps; experts with sinks; attention that a model computes itself, by interleaved rope.
QUICK = ("gemma2", "gpt_oss", "gptj")
LONG = ("llama", "mixtral", "gpt2", "gemma3_text", "phi3", "olmo2", "starcoder2", "gpt_neox", "phi", "cohere", "glm", "stablelm",
        "opt", "qwen3_moe", "afmoe", "apertus", "arcee", "aria_text")  # fmt: skip


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in LONG)])
def test_a_traced_graph_computes_the_logits(kind: str) -> None:
    model = tiny_model(kind)
    tokens = torch.from_numpy(np.random.default_rng(4).integers(3, 60, (2, 9)))
    with torch.no_grad():
        wanted = model(input_ids=tokens, use_cache=False).logits.numpy()
    before = model.config._attn_implementation  # type: ignore[union-attr]
    graph = verify(trace_module(model, kind))
    assert model.config._attn_implementation == before  # type: ignore[union-attr]
    weights = ArrayWeights({name: parameter.detach().numpy() for name, parameter in model.named_parameters()})
    found = interpret(graph, {"tokens": tokens.numpy()}, weights)[graph.outputs[0]]
    assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())


def test_masks_are_recognized_by_what_they_let_through() -> None:
    from transformers import masking_utils as masks

    assert mask_of(masks.causal_mask_function) == Mask(True, 0)
    assert mask_of(masks.bidirectional_mask_function) == Mask(False, 0)
    for window in (1, 3, 4096):
        assert mask_of(masks.sliding_window_causal_mask_function(window)) == Mask(True, window)
        assert mask_of(masks.and_masks(masks.causal_mask_function, masks.sliding_window_overlay(window))) == Mask(True, window)


@pytest.mark.parametrize(
    "function",
    [
        lambda batch, head, query, key: key // 8 == query // 8,
        lambda batch, head, query, key: (key <= query) & (key != 2),
        lambda batch, head, query, key: torch.ones(3)[query] > 0,
    ],
)
def test_other_masks_are_refused(function: object) -> None:
    with pytest.raises(Untraced):
        mask_of(function)  # type: ignore[arg-type]


def test_a_mask_of_another_form_is_a_tensor() -> None:
    """Qwen2-MoE makes one of a window of no tokens, which no layer uses."""
    later = registered.mask_function(q_length=4, kv_length=4, mask_function=lambda batch, head, query, key: key > query)
    assert not later.of_places
    torch.testing.assert_close((later + 0.0)[0, 0] == 0, torch.ones(4, 4, dtype=torch.bool).triu(1))
    blocks = torch.tensor([[-1, 1, 1, -1]])
    inside = lambda b, q, k: (blocks[b, q] == blocks[b, k]) & (blocks[b, q] >= 0)  # noqa: E731
    seen = registered.mask_function(q_length=4, kv_length=4, mask_function=lambda b, h, q, k: (k <= q) | inside(b, q, k))
    assert (seen.tensor()[0, 0] == 0).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


class Odd(torch.nn.Module):
    """A model whose attention asks for what no node stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 8)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        x = self.embedding(input_ids)[:, None]
        out, _ = registered.attention_function(self, x, x, x, None, head_mask=3)
        return type("Output", (), {"logits": out[:, :, 0]})


def test_attention_of_another_form_is_a_finding() -> None:
    with pytest.raises(UnsupportedOps, match="attention with head_mask"):
        trace_module(Odd())


class Chosen(torch.nn.Module):
    """A model whose attention is to the keys that it has chosen."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.embedding, self.config = torch.nn.Embedding(9, 8), SimpleNamespace(index_topk=most)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        x = self.embedding(input_ids)[:, None]
        best = (x @ x.transpose(2, 3)).topk(min(self.config.index_topk, x.shape[2]))[1]
        out, _ = registered.attention_function(self, x, x, x, None, indices=best[:, 0])
        return SimpleNamespace(logits=out[:, :, 0])


def test_attention_to_chosen_keys_is_attention_for_as_long_as_all_are_chosen() -> None:
    graph = trace_module(Chosen(40), longest=40)
    assert [node.op for node in graph.nodes if node.op in ("topk", "attend")] == ["attend"]
    with pytest.raises(UnsupportedOps, match="sequences of more than 40 tokens, nearest: --max-model-len 40"):
        trace_module(Chosen(40), longest=41)
    with pytest.raises(UnsupportedOps, match="attention to 4 chosen tokens"):
        trace_module(Chosen(4))

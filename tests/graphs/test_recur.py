"""Recurrences are one node: ours compute what `transformers`' own functions do, and a sequence's chunks go on from its state."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferrum.graphs.frontend.recurrences import TABLE
from ferrum.graphs.frontend.registered import Untraced
from ferrum.graphs.frontend.replaced import functions_of_ours
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.interpret import ArrayWeights, KvState, interpret, reference_logits
from ferrum.graphs.numpy_recur import recurred
from ferrum.graphs.pipeline import run_pipeline

BATCH, SEQ, HEADS = 2, 70, 4


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape)


def mamba() -> dict[str, Any]:
    return {
        "hidden_states": drawn(BATCH, 6, SEQ), "dt": drawn(BATCH, 6, SEQ), "A": -drawn(6, 5).exp(), "B": drawn(BATCH, 5, SEQ),
        "C": drawn(BATCH, 5, SEQ), "D": drawn(6), "z": drawn(BATCH, 6, SEQ), "delta_bias": drawn(6), "delta_softplus": True,
    }  # fmt: skip


def mamba2() -> dict[str, Any]:
    return {
        "hidden_states": drawn(BATCH, SEQ, HEADS, 3), "dt": drawn(BATCH, SEQ, HEADS), "A": -drawn(HEADS).exp(),
        "B": drawn(BATCH, SEQ, 2, 5), "C": drawn(BATCH, SEQ, 2, 5), "chunk_size": 16, "D": drawn(HEADS), "dt_bias": drawn(HEADS),
        "dt_softplus": True, "dt_limit": (0.01, 2.0),
    }  # fmt: skip


def delta(wide: bool) -> dict[str, Any]:
    keys = HEADS if wide else 2
    decay = drawn(BATCH, SEQ, HEADS, 5) if wide else drawn(BATCH, SEQ, HEADS)
    return {
        "query": drawn(BATCH, SEQ, keys, 5), "key": drawn(BATCH, SEQ, keys, 5), "value": drawn(BATCH, SEQ, HEADS, 3),
        "g": -decay.abs() / 4, "beta": drawn(BATCH, SEQ, HEADS).sigmoid(), "chunk_size": 16, "use_qk_l2norm_in_kernel": True,
    }  # fmt: skip


CASES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "mamba_selective_scan": ("mamba", mamba),
    "mamba2_chunk_scan": ("mamba2", mamba2),
    "torch_chunk_gated_delta_rule": ("qwen3_next", lambda: delta(False)),
    "chunk_kimi_delta_attention": ("kimi_linear", lambda: delta(True)),
}


def result(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_functions_compute_what_those_of_transformers_do(name: str) -> None:
    kind, case = CASES[name]
    file = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    torch.manual_seed(1)
    given = case()
    own = getattr(file, name)
    torch.testing.assert_close(result(TABLE[name](**given)), result(own(**given)), rtol=1e-4, atol=1e-4)


def test_methods_compute_what_those_of_transformers_do() -> None:
    from transformers import MiniMaxConfig, RecurrentGemmaConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    torch.manual_seed(1)
    config = MiniMaxConfig(hidden_size=12, num_attention_heads=HEADS, head_dim=3, num_hidden_layers=2, block_size=16)
    layer, x = MiniMaxLightningAttention(config, 0), drawn(BATCH, SEQ, 12)
    with torch.no_grad():
        wanted = layer(x, None, None)[0]
        torch.testing.assert_close(TABLE["MiniMaxLightningAttention.forward"](layer, x)[0], wanted, rtol=1e-4, atol=1e-4)
    gates = RecurrentGemmaRglru(RecurrentGemmaConfig(lru_width=8, num_attention_heads=2))
    reset = (torch.arange(SEQ) == 0)[None, :, None]
    given = {"hidden_states": drawn(BATCH, SEQ, 8), "recurrent_gate": drawn(BATCH, SEQ, 8).sigmoid(), "reset": reset}
    own = gates._rnn_scan(**given, recurrent_states=None)[0]
    ours = TABLE["RecurrentGemmaRglru._rnn_scan"](gates, **given, recurrent_states=None)[0]
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def test_a_scan_that_goes_on_is_refused() -> None:
    with pytest.raises(Untraced, match="goes on from a state"):
        TABLE["mamba2_chunk_scan"](**mamba2(), initial_states=torch.zeros(1))


def test_files_have_their_own_functions_again() -> None:
    file = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    model, own = file.MambaRMSNormGated(4, 2), file.mamba2_chunk_scan
    with functions_of_ours(model):
        assert file.mamba2_chunk_scan is TABLE["mamba2_chunk_scan"]
    assert file.mamba2_chunk_scan is own


class Recurrent(nn.Module):
    """An embedding, a recurrence of two heads, and a head."""

    def __init__(self, delta_rule: bool, wide: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.delta_rule, self.wide = delta_rule, wide
        self.embedding, self.head = nn.Embedding(11, 12), nn.Linear(6, 11, bias=False)
        self.all = nn.Linear(12, 2 * (4 + 4 + 3 + 4 + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.all(self.embedding(tokens)).unflatten(-1, (2, -1)).split((4, 4, 3, 4, 1), -1)
        decay, beta = parts[3].sigmoid(), parts[4].sigmoid().squeeze(-1)
        decay = decay if self.wide else decay[..., :1]
        out = torch.ops.ferrum.recur(*parts[:3], decay, beta if self.delta_rule else None)
        return self.head(out.flatten(2))


@pytest.mark.parametrize(("delta_rule", "wide"), [(False, False), (False, True), (True, False), (True, True)])
def test_chunks_go_on_from_the_state(delta_rule: bool, wide: bool) -> None:
    module = Recurrent(delta_rule, wide).eval()
    graph = run_pipeline(import_module(module))
    assert [(state.kind, state.shape) for state in graph.states] == [("slot", (2, 4, 3))]
    weights = ArrayWeights({name: parameter.detach().numpy() for name, parameter in module.named_parameters()})
    tokens = np.random.default_rng(3).integers(0, 11, 20)
    with torch.no_grad():
        wanted = module(torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(reference_logits(graph, tokens.tolist(), weights), wanted, rtol=1e-5, atol=1e-5)
    kv, name, found = KvState(), graph.outputs[0], []
    for start, end in ((0, 7), (7, 8), (8, 20)):
        rows = np.arange(end - start, dtype=np.int32)
        inputs = {"tokens": tokens[start:end].astype(np.int32), "positions": start + rows, "sample_rows": rows}
        found.append(interpret(graph, inputs, weights, kv=kv, wanted=(name,))[name])
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-5)


def test_the_order_of_tokens_is_the_order_of_sums() -> None:
    """In any chunks the same bits."""
    random = np.random.default_rng(0)
    q, k, v, decay = (random.standard_normal((9, 2, width)).astype(np.float32) for width in (4, 4, 3, 1))
    state, whole = recurred(np.zeros((2, 4, 3), np.float32), q, k, v, decay)
    half, first = recurred(np.zeros((2, 4, 3), np.float32), q[:4], k[:4], v[:4], decay[:4])
    after, last = recurred(half, q[4:], k[4:], v[4:], decay[4:])
    np.testing.assert_array_equal(np.concatenate([first, last]), whole)
    np.testing.assert_array_equal(after, state)

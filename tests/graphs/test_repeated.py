"""A decoder whose layers are traced once is the one that is traced whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ferrum.graphs.frontend.repeated import import_decoder, layers_to_trace
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.config import from_hf
from ferrum.graphs.models.registry import build, checkpoint_sources
from ferrum.graphs.text import print_graph
from ferrum.graphs.verify import verify

VALUES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24},
    # windows in layers 2 and 3: both kinds are behind another layer, so three layers are traced
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32,
        "max_window_layers": 2, "tie_word_embeddings": True,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["mistral", "qwen2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "qwen3"))]
)
def test_repeated_layers_are_the_traced_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = from_hf(VALUES | MODELS[kind])
    traced: list[int] = []

    def importing(module: Any, *args: Any) -> Graph:
        traced.append(len(module.layers))
        return import_module(module, *args)

    monkeypatch.setattr("ferrum.graphs.frontend.repeated.import_module", importing)
    repeated = verify(import_decoder(config, kind))
    assert traced == [3 if kind == "qwen2" else 2]
    module = build(config)
    assert print_graph(repeated) == print_graph(import_module(module, config, kind, checkpoint_sources(module)))


def test_only_what_a_layer_behind_another_shows_is_repeated() -> None:
    kinds = ("a", "a a a", "a b b", "a b a b", "b a a a", "a a a b a")
    assert [layers_to_trace(layers.split()) for layers in kinds] == [1, 2, 2, 3, 2, 4]


def test_many_layers_cost_no_more_tracing_than_two() -> None:
    """256 layers: every parameter has its own tensor, and no value has two names."""
    config = from_hf(VALUES | MODELS["qwen3"])
    kinds = config.layer_types
    graph: Graph = verify(import_decoder(replace(config, num_layers=256, layer_types=kinds[:1] * 256)))
    names = [param.name for param in graph.params]
    assert len(names) == len(set(names)) == 256 * 11 + 3 and f"model.layers.{255}.mlp.up_proj.weight" in names
    assert len({value.name for node in graph.nodes for value in node.outputs}) == len(graph.nodes) > 256 * 50

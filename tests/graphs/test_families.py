"""Random small models of every family: torch, import, every stage and the paged graph compute the same logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ferrum.graphs.expressions.sources import Constant
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.interpret import ArrayWeights, interpret, reference_greedy, reference_logits
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.config import from_hf
from ferrum.graphs.models.registry import build, checkpoint_names
from ferrum.graphs.models.rope import inverse_frequencies
from ferrum.graphs.pipeline import PIPELINE, check_finished
from ferrum.graphs.text import parse_graph, print_graph
from ferrum.graphs.verify import faults, verify

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPES: tuple[Mapping[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
)


@st.composite
def configs(draw: st.DrawFn, family: str) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    layers = draw(st.integers(1, 2))
    config = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": draw(st.integers(5, 70)),
        "hidden_size": draw(st.integers(8, 40)),
        "intermediate_size": draw(st.integers(3, 50)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(2, 18)),
        "max_position_embeddings": 128,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "hidden_act": draw(st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh"])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([1e4, 5e5])),
        "rope_scaling": dict(draw(st.sampled_from(ROPES))),
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = draw(st.booleans())
    if family == "llama":
        config["mlp_bias"] = draw(st.booleans())
    if family == "mistral":
        config["sliding_window"] = draw(st.sampled_from([None, 1, 4, 6]))
    if family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = draw(st.booleans())
        config |= {"sliding_window": draw(st.sampled_from([2, 5])), "max_window_layers": draw(st.integers(0, layers))}
    return config


def logits_of(
    graph: Graph, tokens: np.ndarray[Any, Any], weights: ArrayWeights, dtype: type[np.floating[Any]]
) -> np.ndarray[Any, Any]:
    if graph.inputs[0].shape == ("batch", "seq"):
        return interpret(graph, {"tokens": tokens}, weights, dtype)[graph.outputs[0]]
    return np.stack([reference_logits(graph, row.tolist(), weights, dtype) for row in tokens])


def check_all_stages(values: dict[str, Any], random: int) -> None:
    config = from_hf(values)
    torch.manual_seed(random)
    module = build(config, "cpu").double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    names = checkpoint_names(config)
    weights = ArrayWeights({names(name): p.detach().numpy() for name, p in module.named_parameters()})
    tokens = torch.randint(0, config.vocab_size, (2, 9))
    with torch.no_grad():
        want = module(tokens).numpy()
    scale = np.abs(want).max()
    graph = import_module(build(config), config, config.family, names)
    for stage in PIPELINE:
        graph = verify(stage.run(graph), stage.name)
        got = logits_of(graph, tokens.numpy(), weights, np.float64)
        assert np.abs(got - want).max() <= 1e-9 * scale, stage.name
    assert np.abs(logits_of(graph, tokens.numpy(), weights, np.float32) - want).max() <= 1e-4 * scale
    assert faults(check_finished(graph), paged=True) == []
    assert parse_graph(print_graph(graph)) == graph
    check_attributes(graph, config)
    check_greedy(graph, module, weights, tokens.tolist())


def check_attributes(graph: Graph, config: Any) -> None:
    nodes = [node for node in graph.nodes if node.op == "paged_attention"]
    assert [n.attrs["layer"] for n in nodes] == list(range(config.num_layers))
    assert [n.attrs["window"] for n in nodes] == [config.window(i) for i in range(config.num_layers)]
    assert {n.attrs["num_kv_heads"] for n in nodes} == {config.num_kv_heads}
    assert {n.attrs["qk_norm"] for n in nodes} == {config.qk_norm}
    assert {n.attrs["rope_scale"] for n in nodes} == {config.rope.scale}
    assert graph.param("rope.inv_freq").source == Constant(inverse_frequencies(config))
    assert len(graph.nodes) == 5 * config.num_layers + 2 * config.num_layers + 5


def check_greedy(graph: Graph, module: torch.nn.Module, weights: ArrayWeights, tokens: list[list[int]]) -> None:
    """Ragged prompts with kept keys and values give torch's own greedy continuation."""
    prompts = [tokens[0], tokens[1][:2], tokens[1][:1]]
    found, rows = reference_greedy(graph, prompts, 3, weights, np.float64)
    for prompt, continuation, row in zip(prompts, found, rows, strict=True):
        ids = list(prompt)
        for step, token in enumerate(continuation):
            with torch.no_grad():
                last = module(torch.tensor([ids]))[0, -1]
            assert float(last.max() - last[token]) <= 1e-9
            if step == 0:
                np.testing.assert_allclose(row, last.numpy(), rtol=1e-7, atol=1e-7)
            ids.append(token)


@pytest.mark.parametrize(("number", "count"), [(11, 3), pytest.param(12, 4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_family_in_all_stages(family: str, number: int, count: int) -> None:
    """The first that is drawn is the smallest that there is."""
    draw = given(configs(family), st.integers(0, 99))(check_all_stages)
    draw = settings(max_examples=count, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))(draw)
    seed(number)(draw)()

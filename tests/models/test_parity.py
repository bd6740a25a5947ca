"""Our modules against transformers' on random small configurations: logits in f32."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferrum.graphs.models.blocks import Decoder
from ferrum.graphs.models.config import from_hf
from ferrum.graphs.models.registry import build, checkpoint_names
from ferrum.graphs.models.rope import inverse_frequencies

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn-given": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "attention_factor": 1.3,
    },
}
BASE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 77, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def reference(family: str, values: dict[str, Any]) -> transformers.PreTrainedModel:
    """transformers' model with weights large enough for attention and biases to matter."""
    config = getattr(transformers, NAMES[family] + "Config")(
        **values, bos_token_id=None, eos_token_id=None, pad_token_id=None, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, NAMES[family] + "ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.15)
    return model


def ours(model: transformers.PreTrainedModel) -> Decoder:
    """Our module built from the saved form of the configuration, filled through the map of checkpoint names."""
    config = from_hf(model.config.to_dict() | {"architectures": [type(model).__name__]})
    module, foreign = build(config, device="cpu"), checkpoint_names(config)
    weights = model.state_dict()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weights.pop(foreign(name)))
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    assert not weights, f"not read: {sorted(weights)}"
    return module


def relative_error(family: str, values: dict[str, Any], length: int) -> float:
    model = reference(family, values)
    tokens = torch.randint(0, values["vocab_size"], (2, length), generator=torch.Generator().manual_seed(length))
    with torch.inference_mode():
        expected, got = model(tokens).logits, ours(model)(tokens)
    assert got.dtype == torch.float32 and got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", NAMES)
def test_every_family_with_every_rope(family: str, rope: str) -> None:
    assert relative_error(family, BASE | {"rope_parameters": dict(ROPES[rope])}, 60) < 1e-5


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": None, "head_dim": None}),
    ("mistral", {"sliding_window": 7}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 1}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
    *(("llama", {"hidden_act": name}) for name in ("swish", "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate")),
]


@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_variants(family: str, change: dict[str, Any]) -> None:
    assert relative_error(family, BASE | {"rope_parameters": dict(ROPES["default"])} | change, 40) < 1e-5


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any], int]:
    family = draw(st.sampled_from(sorted(NAMES)))
    heads = draw(st.sampled_from([1, 2, 3, 6]))
    values = BASE | {
        "vocab_size": draw(st.integers(5, 211)), "hidden_size": heads * draw(st.integers(3, 40)), "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 150)), "num_hidden_layers": draw(st.integers(1, 3)),
        "num_key_value_heads": draw(st.sampled_from([k for k in (1, 2, 3, 6) if heads % k == 0])),
        "head_dim": draw(st.integers(16, 128).map(lambda half: 2 * half)), "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": dict(ROPES[draw(st.sampled_from(sorted(ROPES)))]),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
    }
    window = draw(st.one_of(st.none(), st.integers(1, 50)))
    if family == "mistral":
        values["sliding_window"] = window
    elif family != "llama":
        values |= {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": draw(st.integers(0, 3)),
        }
    if family in ("llama", "qwen3"):
        values["attention_bias"] = draw(st.booleans())
    if family == "llama":
        values["mlp_bias"] = draw(st.booleans())
    return family, values, draw(st.one_of(st.integers(1, 64), st.integers(1, 300)))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configurations())
def test_random_configurations(case: tuple[str, dict[str, Any], int]) -> None:
    family, values, length = case
    assert relative_error(family, values, length) < (1e-5 if length <= 64 else 1e-4)


def test_parity_test_can_fail() -> None:
    values = BASE | {"rope_parameters": dict(ROPES["default"])}
    model = reference("qwen3", values)
    tokens = torch.arange(20)[None]
    module = ours(model)
    with torch.inference_mode():
        module.layers[1].attention.k_norm.weight[3] *= 1.01
        error = (module(tokens) - model(tokens).logits).abs().max() / model(tokens).logits.abs().max()
    assert error > 1e-5


def test_dynamic_rope_beyond_the_trained_length_is_that_of_the_compiled_length() -> None:
    values = BASE | {"max_position_embeddings": 32, "rope_parameters": dict(ROPES["dynamic"])}
    model = reference("llama", values)
    tokens = torch.randint(0, 97, (1, 64), generator=torch.Generator().manual_seed(1))
    from dataclasses import replace

    config = replace(from_hf(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}), max_model_len=64)
    module = ours(model)
    module.rotary.inv_freq = torch.from_numpy(inverse_frequencies(config))
    with torch.inference_mode():
        expected = model(tokens).logits
        error = (module(tokens) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_are_those_of_transformers(rope: str) -> None:
    model = reference("llama", BASE | {"rope_parameters": dict(ROPES[rope])})
    config = from_hf(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]})
    expected = model.model.rotary_emb
    np.testing.assert_allclose(inverse_frequencies(config), expected.inv_freq.numpy(), rtol=3e-7)
    assert config.rope.scale == pytest.approx(expected.attention_scaling, rel=1e-12)


def test_meta_module_takes_no_memory_and_gives_its_constants() -> None:
    values = BASE | {"rope_parameters": dict(ROPES["yarn"]), "architectures": ["Qwen3ForCausalLM"]}
    config = from_hf(values)
    module = build(config)
    assert {p.device.type for p in module.parameters()} == {"meta"} == {b.device.type for b in module.buffers()}
    constants = module.constants()
    assert constants.keys() == dict(module.named_buffers()).keys()
    assert all(constants[k].shape == tuple(b.shape) and constants[k].dtype == np.float32 for k, b in module.named_buffers())


def test_module_can_be_exported_with_free_batch_and_length() -> None:
    config = from_hf(
        BASE | {"architectures": ["MistralForCausalLM"], "sliding_window": 3, "rope_scaling": {"type": "linear", "factor": 2.0}}
    )
    tokens = torch.zeros((2, 8), dtype=torch.int64, device="meta")
    free = {"tokens": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("seq", min=2, max=512)}}
    program = torch.export.export(build(config), (tokens,), dynamic_shapes=free)
    assert not any("repeat_interleave" in str(node.target) for node in program.graph.nodes)

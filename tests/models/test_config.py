"""Reading config.json: both spellings, defaults that are left out, and refusals that name everything at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ferrum.errors import FerrumError
from ferrum.families import NAMES, architectures
from ferrum.graphs.models.config import FULL, SLIDING, from_hf
from ferrum.graphs.models.registry import build, checkpoint_names, load_config

SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 10, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


# The fields that matter of published configurations, as their authors wrote them.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama-3.2-1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        },
        {"head_dim": 64, "num_kv_heads": 8, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "attention_bias": False},
    ),
    "Mistral-7B-v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        {"head_dim": 128, "sliding_window": 4096, "layer_types": (SLIDING,) * 32},
    ),
    "Qwen2.5-0.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {
            "head_dim": 64,
            "attention_bias": True,
            "attention_out_bias": False,
            "sliding_window": None,
            "layer_types": (FULL,) * 24,
        },
    ),
    "Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"head_dim": 128, "qk_norm": True, "num_heads": 16, "attention_bias": False, "mlp_bias": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str) -> None:
    given, expected = PUBLISHED[name]
    config = from_hf(given)
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.rope.theta == given["rope_theta"] and config.rms_norm_eps == given["rms_norm_eps"]


def test_old_and_new_rope_spelling_agree() -> None:
    values = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = from_hf(SMALL | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **values}})
    new = from_hf(SMALL | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **values}})
    assert old == new and old.rope.kind == "llama3" and old.rope.theta == 5e5 and old.rope.original_max_position == 8192


def test_defaults_that_a_saved_config_leaves_out() -> None:
    config = from_hf(
        {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8}
    )
    assert (config.head_dim, config.rms_norm_eps, config.num_layers, config.sliding_window) == (128, 1e-6, 32, None)
    assert from_hf({"architectures": ["MistralForCausalLM"]}).layer_types == (SLIDING,) * 32
    assert from_hf({"architectures": ["LlamaForCausalLM"]}).num_kv_heads == 32


def test_head_dim_is_read_and_not_derived() -> None:
    assert from_hf(SMALL | {"head_dim": 64}).head_dim == 64
    assert from_hf(SMALL | {"head_dim": None}).head_dim == 8


def test_windows_of_layers() -> None:
    qwen = SMALL | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1, "sliding_window": 5, "max_window_layers": 1}
    assert from_hf(qwen).layer_types == (FULL,) * 3
    config = from_hf(qwen | {"use_sliding_window": True})
    assert [config.window(i) for i in range(3)] == [0, 5, 5]


def test_all_faults_are_named_in_one_line() -> None:
    bad = SMALL | {
        "hidden_act": "relu",
        "num_key_value_heads": 3,
        "vocab_size": -1,
        "rms_norm_eps": "x",
        "rope_scaling": {"type": "longrope"},
        "quantization_config": {"bits": 4},
        "tie_word_embeddings": 1,
    }
    with pytest.raises(FerrumError) as caught:
        from_hf(bad)
    assert caught.value.code == "config-unsupported" and "\n" not in str(caught.value)
    for name in (
        "hidden_act",
        "num_key_value_heads",
        "vocab_size",
        "rms_norm_eps",
        "longrope",
        "quantization_config",
        "tie_word_embeddings",
    ):
        assert name in caught.value.what


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear"},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "default"}},
        {"rope_type": "linear", "factor": -1.0},
        {"rope_type": "linear", "factor": float("nan")},
        "linear",
        {"rope_type": ["a"]},
    ],
)
def test_bad_rope_is_refused(rope: Any) -> None:
    with pytest.raises(FerrumError, match="rope|partial_rotary_factor|linear"):
        from_hf(SMALL | {"rope_parameters": rope})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": "LlamaForCausalLM", "model_type": "llama"},
        {"architectures": [None]},
        {"architectures": [["LlamaForCausalLM"]]},
        {"model_type": ["llama"]},
    ],
)
def test_unknown_architecture(values: dict[str, Any]) -> None:
    with pytest.raises(FerrumError) as caught:
        from_hf(values)
    assert caught.value.code == "model-unsupported" and "LlamaForCausalLM" in caught.value.next_step


WRONG: list[Any] = [
    None, "x", "7", -1, 0, 1.5, [], {}, True, 10**30, 10**400, -(10**400), 1e308, 5e-324, float("nan"), "", [1], ["a"], [{}],
    [[]], {"a": 1},
]  # fmt: skip
ROPE_KEYS = (
    "rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate",
    "attention_factor", "mscale", "mscale_all_dim", "original_max_position_embeddings", "partial_rotary_factor",
)  # fmt: skip


def test_no_value_of_any_type_is_a_fault_of_ours() -> None:
    """Every key of a config.json with values of every JSON type: a configuration, or an error in one line."""
    plain = PUBLISHED["Qwen3-0.6B"][0]
    switches: list[dict[str, Any]] = [{}, {"use_sliding_window": True}, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}]
    keys = {*plain, "layer_types", "model_type", "quantization_config", "dtype", "hidden_act", *ROPE_KEYS}
    drawn = [{**plain, **more, key: value} for key in keys for value in WRONG for more in switches]
    for kind in ("default", "linear", "dynamic", "llama3", "yarn"):
        rope = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        drawn += [{**plain, "rope_scaling": {**rope, key: value}} for key in ROPE_KEYS for value in WRONG]
    refused = 0
    for values in drawn:
        try:
            from_hf(values)
        except FerrumError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert len(drawn) // 4 < refused < len(drawn)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"architectures": ["x"]}'])
def test_broken_config_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FerrumError):
        load_config(tmp_path)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match=r"config\.json"):
        load_config(tmp_path)


@pytest.mark.parametrize("architecture", architectures())
def test_every_parameter_has_a_checkpoint_name(tmp_path: Path, architecture: str) -> None:
    values = SMALL | {"architectures": [architecture], "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = load_config(tmp_path)
    names = [checkpoint_names(config)(name) for name, _ in build(config).named_parameters()]
    assert len(set(names)) == len(names) and "model.layers.2.self_attn.o_proj.weight" in names
    stems = {re.sub(r"\.\d+\.", ".{}.", name).rpartition(".")[0] + ".*" for name in names}
    assert stems <= set(NAMES.values())

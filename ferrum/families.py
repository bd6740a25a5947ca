"""Families of models, one literal record each: what their configurations say, how their tensors are called, their short names.

A record is all that a family needs; docs/adding-a-model.md walks through one. The command line reads the short names and the
compiler the rest, so nothing here imports anything of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """``architectures`` are the names in ``config.json``; ``defaults`` what a saved one leaves out because it equals them.

    Switches are "always", "never" or the key of the configuration that turns them on. ``window``: which layers see a sliding
    window, "none", "all" (if one is set) or "upper" (those from ``max_window_layers`` on, if it is switched on).

    ``tensors``: parameters of ours that the checkpoint calls otherwise than ``NAMES`` does. ``joined``: tensors of the checkpoint
    that hold several of our parameters, one after the other along the first axis. ``{}`` is the layer.
    """

    name: str
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    qkv_bias: str = "never"
    out_bias: str = "never"
    mlp_bias: str = "never"
    qk_norm: bool = False
    window: Literal["none", "all", "upper"] = "none"
    tensors: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


# Parameters of ours → tensors of a checkpoint, as Llama named them and most families after it. ``*`` is weight or bias.
NAMES: Mapping[str, str] = {
    "embedding.*": "model.embed_tokens.*",
    "norm.*": "model.norm.*",
    "lm_head.*": "lm_head.*",
    "layers.{}.attention_norm.*": "model.layers.{}.input_layernorm.*",
    "layers.{}.mlp_norm.*": "model.layers.{}.post_attention_layernorm.*",
    "layers.{}.attention.query.*": "model.layers.{}.self_attn.q_proj.*",
    "layers.{}.attention.key.*": "model.layers.{}.self_attn.k_proj.*",
    "layers.{}.attention.value.*": "model.layers.{}.self_attn.v_proj.*",
    "layers.{}.attention.out.*": "model.layers.{}.self_attn.o_proj.*",
    "layers.{}.attention.q_norm.*": "model.layers.{}.self_attn.q_norm.*",
    "layers.{}.attention.k_norm.*": "model.layers.{}.self_attn.k_norm.*",
    "layers.{}.mlp.gate.*": "model.layers.{}.mlp.gate_proj.*",
    "layers.{}.mlp.up.*": "model.layers.{}.mlp.up_proj.*",
    "layers.{}.mlp.down.*": "model.layers.{}.mlp.down_proj.*",
}

# Source of the defaults: configuration_*.py of transformers 5.
_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 10000.0,
    "sliding_window": None, "attention_bias": False, "mlp_bias": False, "head_dim": None,
}  # fmt: skip
_QWEN: dict[str, Any] = _COMMON | {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False,
    "max_window_layers": 28, "layer_types": None,
}  # fmt: skip
_QWEN25 = ("0.5b", "1.5b", "3b", "7b")

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama",
        architectures=("LlamaForCausalLM",),
        defaults=_COMMON | {
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048,
        },
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        aliases={
            "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            "llama3.1:8b": "meta-llama/Llama-3.1-8B-Instruct",
            "llama3.2:1b": "meta-llama/Llama-3.2-1B-Instruct",
            "llama3.2:3b": "meta-llama/Llama-3.2-3B-Instruct",
        },
    ),
    Family(
        name="mistral",
        architectures=("MistralForCausalLM",),
        defaults=_COMMON | {
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
        },
        window="all",
        aliases={
            "mistral:7b": "mistralai/Mistral-7B-Instruct-v0.3",
            "mistral-small:24b": "mistralai/Mistral-Small-24B-Instruct-2501",
        },
    ),
    Family(
        name="qwen2",
        architectures=("Qwen2ForCausalLM",),
        defaults=_QWEN,
        qkv_bias="always",
        window="upper",
        aliases={
            **{f"qwen2.5:{size}": f"Qwen/Qwen2.5-{size.upper()}-Instruct" for size in _QWEN25},
            **{f"qwen2.5:{size}-gptq": f"Qwen/Qwen2.5-{size.upper()}-Instruct-GPTQ-Int4" for size in _QWEN25},
            **{f"qwen2.5-coder:{size}": f"Qwen/Qwen2.5-Coder-{size.upper()}-Instruct" for size in ("14b", "32b")},
            "deepseek-r1:14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
            "deepseek-r1:32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        },
    ),
    Family(
        name="qwen3",
        architectures=("Qwen3ForCausalLM",),
        defaults=_QWEN | {"head_dim": 128},
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm=True,
        window="upper",
        aliases={
            **{f"qwen3:{size}": f"Qwen/Qwen3-{size.upper()}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b")},
            **{f"qwen3:{size}-gptq": f"JunHowie/Qwen3-{size.upper()}-GPTQ-Int4" for size in ("14b", "32b")},
            "deepseek-r1:8b": "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        },
    ),
)  # fmt: skip

# Short names of models whose families have no record yet: they can be pulled, and check says what is missing.
OTHER_ALIASES: Mapping[str, str] = {
    "qwen3:30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-coder:30b": "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    **{f"gemma3:{size}": f"google/gemma-3-{size}-it" for size in ("1b", "4b", "27b")},
    "phi4": "microsoft/phi-4",
    **{f"whisper:{size}": f"openai/whisper-{size}" for size in ("tiny", "base", "small", "medium", "large-v3")},
    "whisper:turbo": "openai/whisper-large-v3-turbo",
    **{f"qwen3-tts:{size}": f"Qwen/Qwen3-TTS-12Hz-{size.upper()}-CustomVoice" for size in ("0.6b", "1.7b")},
}

ALIASES: Mapping[str, str] = {
    **{alias: repo for family in FAMILIES for alias, repo in family.aliases.items()},
    **OTHER_ALIASES,
}


def architectures(families: tuple[Family, ...] = FAMILIES) -> dict[str, Family]:
    """By the name in ``config.json``."""
    return {architecture: family for family in families for architecture in family.architectures}


def family_of(name: str, families: tuple[Family, ...] = FAMILIES) -> Family | None:
    return next((family for family in families if family.name == name), None)

"""Architectures of GGUF files, one literal record each: what their metadata and tensors are called in `transformers`.

Sources: llama.cpp's ``llama-arch.cpp`` for the names, ``conversion/`` for what it changes in tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """``model`` and ``kind`` are the class and model type of `transformers`. ``fixed``: values of its configuration that the
    format leaves out. ``keys``: its keys → keys of the metadata, behind the architecture's name. ``tensors``: stems → its names,
    ``{}`` being the layer and ``*`` weight or bias.

    ``permuted``: rows of q and k stand as pairs, not as halves. ``shifted``: norms hold 1 + w. ``transposed``: stems of matrices
    that `transformers` keeps the other way round. ``switches``: its keys → a tensor that is there when they are true.
    """

    name: str
    model: str
    kind: str
    tensors: Mapping[str, str]
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    permuted: bool = False
    shifted: bool = False
    transposed: tuple[str, ...] = ()
    head_dim: bool = True


_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj", "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj", "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
}  # fmt: skip
_NORMS = {"blk.{}.attn_norm": "model.layers.{}.input_layernorm", "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm"}
_HEAD_NORMS = {"blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm", "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm"}
_GATED = {
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}  # fmt: skip
_LLAMA = _ENDS | _ATTENTION | _NORMS | _GATED
_AFTER = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GEMMA = _LLAMA | _AFTER | {"blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm"}

_SIZES = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}  # fmt: skip
_RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
_ROPE = {"rope_theta": "rope.freq_base"}
_KEYS = _SIZES | _RMS | _ROPE
_WINDOW = {"sliding_window": "attention.sliding_window"}
_SOFTCAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_NO_IDS = {"pad_token_id": None}
_GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "llama", "LlamaForCausalLM", "llama", _LLAMA, _KEYS, permuted=True,
        switches={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
    ),
    Architecture("qwen2", "Qwen2ForCausalLM", "qwen2", _LLAMA, _KEYS, {"use_sliding_window": False}),
    Architecture(
        "qwen3", "Qwen3ForCausalLM", "qwen3", _LLAMA | _HEAD_NORMS, _KEYS, {"use_sliding_window": False},
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    Architecture("gemma", "GemmaForCausalLM", "gemma", _LLAMA, _KEYS, _GELU | _NO_IDS, shifted=True),
    Architecture("gemma2", "Gemma2ForCausalLM", "gemma2", _GEMMA, _KEYS | _WINDOW | _SOFTCAPS, _GELU | _NO_IDS, shifted=True),
    Architecture(
        "gemma3", "Gemma3ForCausalLM", "gemma3_text", _GEMMA | _HEAD_NORMS,
        _KEYS | _WINDOW | {"rope_local_base_freq": "rope.freq_base_swa"} | {"final_logit_softcapping": "final_logit_softcapping"},
        _GELU | _NO_IDS, shifted=True,
    ),
    Architecture(
        "phi3", "Phi3ForCausalLM", "phi3",
        _ENDS | _NORMS | {
            "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
            "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
        },
        _KEYS | _WINDOW, _NO_IDS, head_dim=False,
    ),
    Architecture(
        "olmo2", "Olmo2ForCausalLM", "olmo2", _ENDS | _ATTENTION | _HEAD_NORMS | _AFTER | _GATED, _KEYS, _NO_IDS, head_dim=False,
    ),
    Architecture(
        "granite", "GraniteForCausalLM", "granite", _LLAMA,
        _KEYS | {
            "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
        },
        _NO_IDS, permuted=True, head_dim=False,
    ),
    Architecture("smollm3", "SmolLM3ForCausalLM", "smollm3", _LLAMA, _KEYS, _NO_IDS, permuted=True),
    Architecture(
        "starcoder2", "Starcoder2ForCausalLM", "starcoder2",
        _ENDS | _ATTENTION | _NORMS
        | {"blk.{}.ffn_up": "model.layers.{}.mlp.c_fc", "blk.{}.ffn_down": "model.layers.{}.mlp.c_proj"},
        _SIZES | _ROPE | {"norm_epsilon": "attention.layer_norm_epsilon"},
        {"use_bias": True, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None}, head_dim=False,
    ),
    Architecture(
        "stablelm", "StableLmForCausalLM", "stablelm", _LLAMA,
        _SIZES | _ROPE | {"layer_norm_eps": "attention.layer_norm_epsilon"},
        # converters write a parallel residual where the configuration is silent; the models that have one lack ffn_norm
        _NO_IDS | {"use_parallel_residual": False}, switches={"use_qkv_bias": "blk.0.attn_q.bias"}, head_dim=False,
    ),
    Architecture(
        "gpt2", "GPT2LMHeadModel", "gpt2",
        {
            "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
            "output": "lm_head", "blk.{}.attn_norm": "transformer.h.{}.ln_1", "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
            "blk.{}.attn_output": "transformer.h.{}.attn.c_proj", "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
            "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc", "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
        },
        {
            "n_embd": "embedding_length", "n_inner": "feed_forward_length", "n_layer": "block_count",
            "n_head": "attention.head_count", "n_positions": "context_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        transposed=("blk.{}.attn_qkv", "blk.{}.attn_output", "blk.{}.ffn_up", "blk.{}.ffn_down"), head_dim=False,
    ),
)  # fmt: skip


def architecture_of(name: str) -> Architecture | None:
    return next((record for record in ARCHITECTURES if record.name == name), None)

"""Tiny models of any type that `transformers` knows: its own module with random weights, everything in float32."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ferrum.graphs.frontend.registered import NAME

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
# What a configuration needs besides, or must not be given.
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "granitemoe", "gpt_oss", "minimax_m2", "dots1", "glm4_moe"), _EXPERTS
    ),
    **dict.fromkeys(("gpt2", "gptj", "codegen"), _GPT | {"rotary_dim": 4}),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    **dict.fromkeys(("cwm", "glm"), {"bos_token_id": 1, "eos_token_id": 2}),
}


def tiny_config(kind: str) -> Any:
    return transformers.AutoConfig.for_model(kind, **SMALL | MORE.get(kind, {}))


def tiny_model(kind: str, seed: int = 0) -> torch.nn.Module:
    return random_model(tiny_config(kind), seed)


def random_model(config: Any, seed: int = 0, auto: Any = transformers.AutoModelForCausalLM) -> torch.nn.Module:
    """Of the class that ``auto`` finds, with weights that are far enough from their initial values to tell one from another; rows
    in a checkpoint's buffers as well, not tables there that a module computes from each other, decays by place say: they only
    mean something together."""
    torch.manual_seed(seed)
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    held = model.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
        for name, buffer in model.named_buffers():
            if name in held and buffer.is_floating_point() and buffer.ndim < 2:
                buffer.add_(torch.randn_like(buffer) * 0.1)
    return model


def named(model: torch.nn.Module) -> str:
    """How the model's attention is called now."""
    return str(model.config._attn_implementation) if hasattr(model, "config") else NAME

"""A tiny configuration of any type of `transformers`: its own defaults with every size made small, and one layer of each kind."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MOST_LAYERS = 4
VOCAB, WIDTH, INNER, HEADS, KV_HEADS, HEAD, LONGEST, WINDOW = 64, 32, 48, 4, 2, 8, 128, 16

KV_NAMES = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")

# What sizes are called. A default of None stays None: it says that the size follows from others.
SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "embedding_vocab_size", "audio_vocab_size"), VOCAB),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "input_embedding_size", "output_embedding_size",
         "word_embed_proj_dim", "hidden_size_global", "backbone_hidden_size", "attention_hidden_size", "lru_width",
         "adapter_in_dim"), WIDTH,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "dim_ff", "dff", "d_ff",
         "d_inner", "feed_forward_size", "intermediate_size_mlp", "block_ffn_dim", "ffn_embed_dim", "mlp_dim"), INNER,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size", "shared_intermediate_size",
         "moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 16,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS,
    ),
    **dict.fromkeys(KV_NAMES, KV_HEADS),
    **dict.fromkeys(("head_dim", "global_head_dim", "attention_head_size", "dim_head", "kv_channels", "swa_head_dim"), HEAD),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
         "num_decoder_layers", "depth"), 2,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "context_length",
         "max_source_positions", "max_target_positions", "seq_length"), LONGEST,
    ),
    **dict.fromkeys(
        ("sliding_window", "attention_window_size", "local_attention", "window_size", "attention_chunk_size"), WINDOW,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_shared_experts", "n_shared_experts", "num_dense_layers", "zero_expert_num"), 2),
    **dict.fromkeys(("topk_group", "first_k_dense_replace", "num_kv_shared_layers"), 1),
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": HEAD, "qk_nope_head_dim": 8, "v_head_dim": 10,
    "index_topk": LONGEST, "index_head_dim": 8, "index_n_heads": 2, "o_lora_rank": 16, "hidden_size_per_layer_input": 8,
    "rotary_dim": 4, "relative_max_distance": LONGEST, "query_pre_attn_scalar": 8, "laurel_rank": 8, "n_rank": 8,
    "num_hash_layers": 1, "image_size": 32, "patch_size": 16, "mamba_d_ssm": 64, "num_expert_group": 2,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim", "mamba_headdim", "mamba_d_state",
                     "ssm_state_size", "state_size", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), HEADS),
    **dict.fromkeys(("linear_num_key_heads", "n_groups", "mamba_n_groups", "num_experts_per_token"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 16),
}  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IGNORED = frozenset({"model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "layer_types"})

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# What a type must be told besides.
MORE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": WINDOW},
    "xmod": {"default_language": "en_XX"},
    "falcon": {"alibi": True},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": HEAD}),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "nemotron": {"num_key_value_heads": KV_HEADS},
    "dots3_note_text": {
        "swa_num_attention_heads": HEADS, "swa_num_key_value_heads": HEADS, "swa_q_lora_rank": 24, "swa_kv_lora_rank": 16,
        "swa_head_dim": 2 * HEAD, "swa_qk_nope_head_dim": HEAD, "swa_v_head_dim": 10, "sliding_window": WINDOW,
    },
    "dbrx": {"attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "zamba": {
        "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16, "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,  # two of those that share a transformer
    },
    "zamba2": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16},
}


class NoConfiguration(Exception):
    """A type whose defaults cannot be made small by rule."""


def tiny_config(kind: str, decoder: bool = True) -> Any:
    """``decoder``: whether tokens see only what came before. Raises ``NoConfiguration`` with the reason."""
    cls = CONFIG_MAPPING[kind]
    fault: Exception | None = None
    for each_kind in (True, False):
        try:
            default = cls()
            return cls(**(small_values(default, decoder) | (layers(default) if each_kind else {}) | MORE.get(kind, {})))
        except Exception as error:  # every class judges its values its own way
            fault = fault or error
    assert fault is not None
    raise NoConfiguration(f"{type(fault).__name__}: {' '.join(str(fault).splitlines()[:2])}") from fault


def small_values(default: Any, decoder: bool = True) -> dict[str, Any]:
    """What differs from the defaults, by name; configurations inside are made small as well."""
    found: dict[str, Any] = {}
    values = {key: value for key, value in vars(default).items() if not key.startswith("_") and key not in IGNORED}
    for key, value in values.items():
        if key == "is_decoder":
            found[key] = decoder  # what is made of an encoder sees what came before
        elif isinstance(value, transformers.PretrainedConfig):
            found[key] = type(value)(**(small_values(value, decoder) | layers(value) | MORE.get(value.model_type, {})))
        elif key in TOKENS and isinstance(value, int):
            found[key] = TOKENS[key]
        elif key in TOKENS and isinstance(value, list):
            found[key] = [TOKENS[key]]
        elif key in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            found[key] = min(value, SIZES[key])
        elif key in SIZES and isinstance(value, list | tuple) and value and all(isinstance(n, int) for n in value):
            found[key] = [min(n, SIZES[key]) for n in value]
    heads = values.get(default.attribute_map.get("num_attention_heads", "num_attention_heads"))  # of all layers together
    return found | {key: HEADS for key in KV_NAMES if key in found and values[key] == heads}  # shared by no heads, as before


def layers(default: Any) -> dict[str, Any]:
    """One layer of each kind that the defaults have, in their order, and what is said of each layer."""
    count = getattr(default, "num_hidden_layers", None)
    lists = {
        key: list(value)
        for key, value in vars(default).items()
        if isinstance(value, list | tuple) and len(value) == count and not key.startswith("_")
    }
    if not lists or not isinstance(count, int):
        return {}
    kinds: dict[str, int] = {}
    for number in range(count):
        kinds.setdefault(repr([value[number] for value in lists.values()]), number)
    chosen = sorted(kinds.values())[:MOST_LAYERS]
    chosen = chosen if len(chosen) > 1 else [0, min(1, count - 1)]
    cut = {key: [value[number] for number in chosen] for key, value in lists.items()}
    for key, value in cut.items():
        if key in SIZES:
            cut[key] = [min(n, SIZES[key]) if isinstance(n, int) else n for n in value]
    return cut | {default.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(chosen)}

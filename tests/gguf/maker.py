"""GGUF files of tiny models, made by the format's own package as llama.cpp's converters make them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# A llama of one layer, for what looks at no weights.
SIZES = {
    "llama.block_count": 1, "llama.embedding_length": 32, "llama.feed_forward_length": 48, "llama.attention.head_count": 4,
    "llama.context_length": 64, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
# The type of transformers → what the format calls it, where they differ.
ARCHITECTURES = {"gemma3_text": "gemma3"}
_PERMUTED = ("llama", "granite", "smollm3")
_SHIFTED = ("gemma", "gemma2", "gemma3_text")
_TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# Metadata of one kind of model: key behind the architecture's name → name in the configuration.
_MORE: dict[str, dict[str, str]] = {
    "granite": {
        "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
    },
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
        "attention.sliding_window": "sliding_window",
    },
    "gemma3_text": {"attention.sliding_window": "sliding_window"},
}  # fmt: skip


def random_blocks(kind: str, rows: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Bytes ``[rows, width in bytes]`` of a block type whose floats are all finite."""
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows * width // size, nbytes), dtype=np.uint8)
    for at in _halves(kind):
        raw[:, at : at + 2] = (random.normal(size=len(raw)) * 0.05).astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind == "q8_k":
        raw[:, :4] = (random.normal(size=len(raw)) * 0.05).astype("<f4").view(np.uint8).reshape(-1, 4)
    if kind == "mxfp4":
        raw[:, 0] = random.integers(100, 130, len(raw))
    if kind == "iq1_m":  # its float16 lies in the high bits of four words, the highest last: an exponent below infinity's
        raw[:, 55] &= 0x3F
    return raw.reshape(rows, -1)


def _halves(kind: str) -> list[int]:
    """Where a block's float16 numbers lie."""
    last = {"q2_k": [80, 82], "q3_k": [108], "q6_k": [208], "tq1_0": [52], "tq2_0": [64]}
    none = ("q8_k", "mxfp4", "nvfp4", "iq1_m")
    both = ("q4_1", "q5_1", "q4_k", "q5_k")
    return [] if kind in none else last.get(kind, [0, 2] if kind in both else [0])


def write(
    path: Path,
    architecture: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    words: Mapping[str, Any] | None = None,
) -> Path:
    """``values``: metadata with whole keys. ``tensors``: arrays, or (bytes, block type). ``words``: the tokenizer's metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**values, **(words or {})}.items():
        _add(writer, key, value)
    for name, given in tensors.items():
        raw, kind = given if isinstance(given, tuple) else (given, "")
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind.upper()] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def metadata(config: Any, kind: str) -> dict[str, Any]:
    """What llama.cpp's converters write of a configuration."""
    prefix = ARCHITECTURES.get(kind, kind)
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    full = rope.get("full_attention", rope)
    found = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "attention.head_count": heads,
        "feed_forward_length": 4 * config.hidden_size if kind == "gpt2" else config.intermediate_size,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": next(
            (v for n in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon") if (v := getattr(config, n, None))), None
        ),
        "rope.freq_base": full.get("rope_theta"),
        "rope.freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta"),
        "attention.key_length": getattr(config, "head_dim", None), "attention.value_length": getattr(config, "head_dim", None),
    }  # fmt: skip
    if "partial_rotary_factor" in full:
        found["rope.dimension_count"] = int(config.hidden_size // heads * full["partial_rotary_factor"])
    if full.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": full["rope_type"], "rope.scaling.factor": full["factor"]}
        found["rope.scaling.original_context_length"] = full.get("original_max_position_embeddings")
    found |= {key: getattr(config, name) for key, name in _MORE.get(kind, {}).items()}
    if kind == "gpt2":
        found = {key: value for key, value in found.items() if "kv" not in key and "length" not in key.partition("attention.")[2]}
    return {f"{prefix}.{key}": value for key, value in found.items() if value is not None}


def tensors_of(model: torch.nn.Module, kind: str) -> dict[str, NDArray[np.float32]]:
    """A model's weights as llama.cpp's converters name and change them."""
    config: Any = model.config
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == ARCHITECTURES.get(kind, kind))
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        data = tensor.float().numpy()
        if kind in _PERMUTED and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            data = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        if kind in _SHIFTED and name.endswith("norm.weight"):
            data = data + np.float32(1)
        if name.endswith(_TURNED) and kind == "gpt2":
            data = data.T
        made = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert made is not None, name
        found[made] = np.ascontiguousarray(data)
    return found


def converted(kind: str, path: Path, **words: Any) -> tuple[torch.nn.Module, Path]:
    """A tiny random model of a type, and its file in float32."""
    from tests.graphs.tiny_models import tiny_model

    model: Any = tiny_model(kind)
    if kind in ("gemma2", "gemma3_text"):  # as in all published ones but the largest; the format does not say it
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    architecture = ARCHITECTURES.get(kind, kind)
    return model, write(path, architecture, metadata(model.config, kind), tensors_of(model, kind), words=words)


def one_layer() -> dict[str, NDArray[np.float32]]:
    """All tensors of the model that ``SIZES`` describe, made without torch."""
    shapes = {
        "token_embd": (64, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48),
        **{f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")},
    }  # fmt: skip
    random = np.random.default_rng(0)
    return {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

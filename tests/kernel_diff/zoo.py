"""The fixed zoo: small models that switch the templates' branches, and on which target and in which format each is rendered.

Every model meets every kind of machine, every target meets every format; a full product would say little more.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SMALL: dict[str, Any] = {
    "vocab_size": 515, "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
# What switches a branch: biases, tied or not, head size, heads of a group, q/k norm, windows, the gate, odd sizes.
MODELS: dict[str, dict[str, Any]] = {
    "llama": _SMALL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": _LLAMA3},
    "llama-bias": _SMALL | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": True,
        "hidden_act": "gelu", "hidden_size": 136, "intermediate_size": 200, "num_key_value_heads": 4, "head_dim": 40,
        "tie_word_embeddings": True,
    },
    "mistral": _SMALL | {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24, "head_dim": 128,
        "num_key_value_heads": 1,
    },
    "qwen2": _SMALL | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True, "hidden_size": 448,
        "num_attention_heads": 7, "num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 32,
        "max_window_layers": 1,
    },
    "qwen3": _SMALL | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 128,
    },
    "qwen3-64": _SMALL | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64, "num_attention_heads": 8,
        "hidden_act": "gelu_pytorch_tanh", "attention_bias": True,
    },
    # a plain torch module of another shape, tests/graphs/scratch.py, beside the names and limits that a folder must have
    "layer-norm": _SMALL | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 104, "scratch": {
            "sizes": {"vocab": 104, "hidden": 96, "inner": 136, "layers": 2, "head_dim": 32, "qk_norm": False, "tied": False,
                      "bias": True},
            "spelling": {"norm": "layer", "mlp": "gelu"},
        },
    },
}  # fmt: skip
_CPUS = ("cpu-x86_64", "cpu-avx2", "cpu-avx512", "cpu-avx512-vnni", "cpu-avx512-bf16", "cpu-arm64", "cpu-arm64-dotprod",
         "cpu-arm64-i8mm", "cpu-amx")  # fmt: skip
_GPUS = ("cuda-sm80", "cuda-sm89", "cuda-sm90", "metal-m1", "metal-m4")
_FORMATS = (("f32", ""), ("none", ""), ("int8", ""), ("int4-g32", ""), ("int4a-g128", ""))
_CPU_FORMATS = (*_FORMATS, ("none", "int8"))
_GPU_FORMATS = (*_FORMATS, ("fp8", ""))


@dataclass(frozen=True)
class Entry:
    """One rendering: a model of ``MODELS`` for a target, with weights in ``quant`` and a cache in ``kv`` (empty: the default)."""

    model: str
    target: str
    quant: str
    kv: str = ""

    @property
    def name(self) -> str:
        return ".".join(filter(None, (self.target, self.quant, self.kv and f"kv-{self.kv}", self.model)))


def _pairs() -> Iterator[Entry]:
    models = list(MODELS)
    for targets, formats in ((_CPUS, _CPU_FORMATS), (_GPUS, _GPU_FORMATS)):
        for t, target in enumerate(targets):
            for f, (quant, kv) in enumerate(formats):
                yield Entry(models[(t + f) % len(models)], target, quant, kv)


ZOO: tuple[Entry, ...] = tuple(_pairs())


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's tensors."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    q, kv, kind = heads * head, config["num_key_value_heads"] * head, config["model_type"]
    bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    products = {
        "self_attn.q_proj": (q, hidden, bias or kind == "qwen2"), "self_attn.k_proj": (kv, hidden, bias or kind == "qwen2"),
        "self_attn.v_proj": (kv, hidden, bias or kind == "qwen2"), "self_attn.o_proj": (hidden, q, bias),
        "mlp.gate_proj": (inner, hidden, mlp_bias), "mlp.up_proj": (inner, hidden, mlp_bias),
        "mlp.down_proj": (hidden, inner, mlp_bias),
    }  # fmt: skip
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if kind == "qwen3":
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}.weight": (size,) for name, size in norms.items()}
        shapes |= {f"{layer}{name}.weight": (n, k) for name, (n, k, _) in products.items()}
        shapes |= {f"{layer}{name}.bias": (n,) for name, (n, _, has_bias) in products.items() if has_bias}
    return shapes


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """config.json and a model.safetensors of ones (bfloat16). Returns ``folder``.

    The weights of a module of ``tests/graphs/scratch.py`` are written by who builds it (``collect.py``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if "scratch" in config:
        return folder
    header, at = {}, 0
    for name, shape in tensor_shapes(config).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\x80\x3f" * (at // 2))
    return folder

"""A small Qwen3-shaped checkpoint with random weights, for tests of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import ferrum.graphs.tiny

TINY = Path(ferrum.graphs.tiny.__file__).parent
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 64, 2, 1, 32, 96


def tensors(layers: int = 1, vocab_size: int = 768) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.2)

    table = {"model.embed_tokens.weight": matrix(vocab_size, HIDDEN), "model.norm.weight": np.ones(HIDDEN, np.float32)}
    for i in range(layers):
        at = f"model.layers.{i}."
        table |= {
            f"{at}input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{at}post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{at}self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{at}self_attn.q_norm.weight": np.ones(HEAD_DIM, np.float32),
            f"{at}self_attn.k_norm.weight": np.ones(HEAD_DIM, np.float32),
            f"{at}mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{at}mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{at}mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
    return table


def write_checkpoint(folder: Path, weights: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A folder with ``tiny``'s tokenizer and template; ``changes`` are keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
    }
    config = {**json.loads((TINY / "model" / "config.json").read_text()), **sizes, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "model" / name, folder / name)
    shutil.copy(TINY / "chat_template.jinja", folder / "chat_template.jinja")
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    return folder

"""The built-in model as a normal Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ferrum.graphs.models.config import ModelConfig, from_hf
from ferrum.graphs.models.registry import checkpoint_names
from ferrum.graphs.tiny.chat import TEMPLATE_FILE
from ferrum.graphs.tiny.training.tokenizer import CONTEXT, VOCAB_SIZE, make_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def hf_config() -> dict[str, Any]:
    vocab = make_tokenizer().get_vocab()
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        **SHAPE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "use_sliding_window": False,
        "sliding_window": None,
        "use_cache": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": vocab["<|im_end|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }


def model_config() -> ModelConfig:
    return from_hf(hf_config())


def write_texts(folder: Path) -> None:
    """Everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config()
    generation = {"do_sample": False, "eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": template,
    }
    for name, values in (("config", config), ("generation_config", generation), ("tokenizer_config", tokenizer)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    make_tokenizer().save(str(folder / "tokenizer.json"))


def export(model: nn.Module, folder: Path) -> None:
    """Weights in bf16 under the checkpoint's names, with the texts."""
    import torch
    from safetensors.torch import save_file

    write_texts(folder)
    names = checkpoint_names(model_config())
    tensors = {names(name): p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # it is written readable by its owner only

"""Folders of tiny models that embed, as sentence-transformers saves them, and what `transformers` makes of tokens there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ferrum.graphs.numpy_pool import pooled

VOCAB = 90
_BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_DISTIL = {
    "vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
_DECODER = _BERT | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT | {"max_position_embeddings": 64, "pad_token_id": 0},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": _DISTIL,
    "modernbert": _BERT | {"pad_token_id": 0, "local_attention": 16, "global_attn_every_n_layers": 2},
    "qwen3": _DECODER,
    "gemma2": _DECODER | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, "sliding_window": 12},
}
# Longest sequence: RoBERTa's positions begin behind the padding token's number.
LONGEST = {kind: 64 for kind in CONFIGS} | {"qwen3": 66, "gemma2": 66, "modernbert": 66}
SWITCHES = {
    "first": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken", "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Embedder:
    """A folder and its model; ``of`` is what a pack of it should say."""

    folder: Path
    model: Any
    how: str
    normalize: bool

    def of(self, ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            rows = self.model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].numpy()
        row = pooled(rows, self.how)
        return np.asarray(row / np.linalg.norm(row) if self.normalize else row, np.float32)


def embedder(kind: str, folder: Path, how: str = "mean", normalize: bool = True, **settings: Any) -> Embedder:
    """``settings``: of ``sentence_bert_config.json``."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind])
    model = transformers.AutoModel.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.1 * noise if parameter.ndim < 2 or "norm" in name.lower() else 0.2 * noise)
    model.save_pretrained(folder)
    sentence_files(folder, how, normalize, **settings)
    return Embedder(folder, model, how, normalize)


def sentence_files(folder: Path, how: str, normalize: bool, **settings: Any) -> None:
    parts = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{part}" if i else "", "type": f"sentence_transformers.models.{part}"}
        for i, part in enumerate(parts)
    ]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    switches = {switch: name == how for name, switch in SWITCHES.items()}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **switches, "include_prompt": True})
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False} | settings)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")

"""Qwen2 and Qwen2.5: biases on query, key and value; a window in the upper layers, if switched on."""

from __future__ import annotations

from ferrum.graphs.models.blocks import LLAMA_NAMES, Decoder, foreign_name

CHECKPOINT_NAMES = LLAMA_NAMES


class Qwen2ForCausalLM(Decoder):
    """tokens int64 [batch, seq] → logits f32 [batch, seq, vocab_size]."""


def checkpoint_name(parameter_name: str) -> str:
    """The name in the checkpoint of a parameter of ``Qwen2ForCausalLM``."""
    return foreign_name(CHECKPOINT_NAMES, parameter_name)

"""Llama 1, 2 and 3.x, TinyLlama, Vicuna: optional biases, llama3 rope."""

from __future__ import annotations

from ferrum.graphs.models.blocks import LLAMA_NAMES, Decoder, foreign_name

CHECKPOINT_NAMES = LLAMA_NAMES


class LlamaForCausalLM(Decoder):
    """tokens int64 [batch, seq] → logits f32 [batch, seq, vocab_size]."""


def checkpoint_name(parameter_name: str) -> str:
    """The name in the checkpoint of a parameter of ``LlamaForCausalLM``."""
    return foreign_name(CHECKPOINT_NAMES, parameter_name)

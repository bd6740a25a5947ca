"""Qwen3: RMSNorm on each head's query and key before rope; head_dim is its own number."""

from __future__ import annotations

from ferrum.graphs.models.blocks import LLAMA_NAMES, Decoder, foreign_name

CHECKPOINT_NAMES = LLAMA_NAMES


class Qwen3ForCausalLM(Decoder):
    """tokens int64 [batch, seq] → logits f32 [batch, seq, vocab_size]."""


def checkpoint_name(parameter_name: str) -> str:
    """The name in the checkpoint of a parameter of ``Qwen3ForCausalLM``."""
    return foreign_name(CHECKPOINT_NAMES, parameter_name)

"""Mistral 7B and its kin: a sliding window in every layer, if the configuration sets one."""

from __future__ import annotations

from ferrum.graphs.models.blocks import LLAMA_NAMES, Decoder, foreign_name

CHECKPOINT_NAMES = LLAMA_NAMES


class MistralForCausalLM(Decoder):
    """tokens int64 [batch, seq] → logits f32 [batch, seq, vocab_size]."""


def checkpoint_name(parameter_name: str) -> str:
    """The name in the checkpoint of a parameter of ``MistralForCausalLM``."""
    return foreign_name(CHECKPOINT_NAMES, parameter_name)

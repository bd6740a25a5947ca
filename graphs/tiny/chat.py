"""Conversations ↔ tokens for training and evaluation on torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from ferrum.graphs.tiny.data import Message, Tool

MODEL_FOLDER = Path(__file__).parent / "model"
TEMPLATE_FILE = Path(__file__).parent / "chat_template.jinja"
END = "<|im_end|>"


class Chat:
    """Renders with the model's own template and encodes with its tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self.template = environment.from_string(TEMPLATE_FILE.read_text(encoding="utf-8"))
        self.tokenizer = tokenizer
        self.end: int = tokenizer.get_vocab()[END]
        self.header = tokenizer.encode("<|im_start|>assistant\n").ids

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), add_generation_prompt: bool = False) -> str:
        return self.template.render(
            messages=list(messages), tools=list(tools) or None, add_generation_prompt=add_generation_prompt
        )

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def answer_mask(self, ids: Sequence[int]) -> list[bool]:
        """True where a token was said by the assistant, its end mark included: what the model learns to say."""
        mask, speaking = [False] * len(ids), False
        head = len(self.header)
        for i, token in enumerate(ids):
            mask[i] = speaking
            if token == self.end:
                speaking = False
            elif list(ids[i + 1 - head:i + 1]) == self.header:
                speaking = True
        return mask

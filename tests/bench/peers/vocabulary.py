"""A made-up vocabulary of a true size, written for both sides, so that text costs them the same.

Byte-level BPE over printable characters: 256 bytes, all pairs of printable characters, then triples until the size is reached.
Almost every token is plain ASCII, so random output never waits for the rest of a character.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _byte_characters() -> list[str]:
    """GPT-2's printable character of each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(256)
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """``size`` tokens; the last three are ``SPECIAL``."""

    size: int

    @cached_property
    def _learned(self) -> list[tuple[str, str]]:
        characters = [_byte_characters()[b] for b in range(0x20, 0x7F)]
        pairs = [(a, b) for a in characters for b in characters]
        triples = ((a + b, c) for a, b in pairs for c in characters)
        room = self.size - 256 - len(SPECIAL)
        return list(itertools.islice(itertools.chain(pairs, triples), room))

    @property
    def merges(self) -> list[str]:
        return [f"{left} {right}" for left, right in self._learned]

    @property
    def tokens(self) -> list[str]:
        tokens = [*_byte_characters(), *(left + right for left, right in self._learned), *SPECIAL]
        assert len(tokens) == self.size
        return tokens

    @property
    def special_ids(self) -> dict[str, int]:
        return {token: self.size - len(SPECIAL) + i for i, token in enumerate(SPECIAL)}

    def write(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json and generation_config.json as Hugging Face writes them."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        ordinary = [t for t in self.tokens if t not in SPECIAL]
        tokenizer: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": token, **flags} for token, i in self.special_ids.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
            "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(ordinary)}, "merges": self.merges},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL[0],
            "add_bos_token": False,
            "chat_template": _CHATML,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": self.special_ids[SPECIAL[0]]}))

    def add_to_gguf(self, writer: Any) -> None:
        """The same tokens, merges and special ids in a gguf.GGUFWriter."""
        normal, control = 1, 3
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(self.tokens)
        writer.add_token_types([control if t in SPECIAL else normal for t in self.tokens])
        writer.add_token_merges(self.merges)
        writer.add_eos_token_id(self.special_ids[SPECIAL[0]])
        writer.add_bos_token_id(self.special_ids[SPECIAL[0]])
        writer.add_add_bos_token(False)
        writer.add_chat_template(_CHATML)

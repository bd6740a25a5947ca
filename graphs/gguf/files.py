"""The files of a model folder, made of a GGUF file's metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError
from ferrum.graphs.gguf.config import config_of
from ferrum.graphs.gguf.tokenizer import Vocabulary, templates_of, tokenizer_of, vocabulary_of
from ferrum.graphs.weights.gguf import Gguf, open_gguf

MAX_BYTES = 64 << 20  # of one file of a model beside its weights
# Sampling as generation_config.json has it → as the metadata has it.
_SAMPLING = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat",
}  # fmt: skip


@dataclass(frozen=True)
class GgufFiles:
    model: Gguf

    @classmethod
    def of(cls, path: Path) -> GgufFiles:
        return cls(open_gguf(path))

    @cached_property
    def words(self) -> Vocabulary | None:
        return vocabulary_of(self.model)

    @cached_property
    def templates(self) -> dict[str, str]:
        return dict(templates_of(self.model))

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes | None:
        """Raises FerrumError for what the metadata says wrong, and (config-unreadable) above ``limit`` bytes."""
        data = self._made(name)
        if data is not None and len(data) > limit:
            what = f"{name} made of its metadata is larger than {limit >> 20} MiB"
            raise FerrumError("config-unreadable", what, self.model.path.name, "use another file of this model")
        return data

    def named(self, folder: str, suffix: str) -> list[str]:
        more = sorted(name for name in self.templates if name != "default" and name.isidentifier())
        return [f"{folder}/{name}{suffix}" for name in more] if folder == "additional_chat_templates" else []

    @property
    def quantized(self) -> bool:
        return any(file.blocks for file in self.model.files)

    def _made(self, name: str) -> bytes | None:
        if name == "config.json":
            return _json(config_of(self.model))
        if name == "README.md":
            licence = str(self.model.get("general.license", str, ""))
            return f"---\nlicense: {licence.splitlines()[0]}\n".encode() if licence.strip() else None
        if name == "generation_config.json":
            return _json(self._generation())
        if name.endswith(".jinja"):
            key = Path(name).stem if "/" in name else "default"
            return self.templates[key].encode() if key in self.templates else None
        if self.words is None:
            return None
        if name == "tokenizer.json":
            return tokenizer_of(self.words)
        return _json(self.words.texts()) if name == "tokenizer_config.json" else None

    def _generation(self) -> dict[str, Any]:
        given = {key: self.model.get(f"general.sampling.{name}", (int, float)) for key, name in _SAMPLING.items()}
        found: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        ends = self.words.ends() if self.words else []
        return found | ({"eos_token_id": ends} if ends else {})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()

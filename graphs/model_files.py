"""What a model brings beside its weights, by the file names of a Hugging Face folder: from a folder, or made of a GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ferrum.errors import FerrumError
from ferrum.graphs.gguf.files import MAX_BYTES, GgufFiles
from ferrum.graphs.weights.gguf import is_gguf
from ferrum.graphs.weights.saved import folder_of, saved_graph


class ModelFiles(Protocol):
    def read(self, name: str, limit: int = MAX_BYTES) -> bytes | None:
        """The bytes of a file, None when there is none. Raises FerrumError (config-unreadable), also above ``limit`` bytes."""

    def named(self, folder: str, suffix: str) -> list[str]:
        """The sorted names of the files of a folder, ``folder/`` before each."""

    @property
    def quantized(self) -> bool:
        """Whether weights are stored in blocks with scales."""


@dataclass(frozen=True)
class Folder:
    path: Path

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes | None:
        path = self.path / name
        try:
            if path.stat().st_size > limit:
                raise FerrumError("config-unreadable", f"larger than {limit >> 20} MiB", str(path), "check the download")
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise FerrumError("config-unreadable", what, str(path), "check the file's permissions") from None

    def named(self, folder: str, suffix: str) -> list[str]:
        return [f"{folder}/{path.name}" for path in sorted((self.path / folder).glob(f"*{suffix}"))]

    @property
    def quantized(self) -> bool:
        return b'"quantization_config"' in (self.read("config.json") or b"")


GENAI = "genai_config.json"
# What of ONNX Runtime's own configuration config.json has a word for.
_GENAI_KEYS = {"context_length": "max_position_embeddings", "vocab_size": "vocab_size", "type": "model_type",
               "eos_token_id": "eos_token_id", "bos_token_id": "bos_token_id", "pad_token_id": "pad_token_id"}  # fmt: skip


@dataclass(frozen=True)
class Beside(Folder):
    """The folder of a model that is whole in one file: its own configuration, or that of ONNX Runtime's generator."""

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes | None:
        found = super().read(name, limit)
        if found is not None or name != "config.json":
            return found
        data = super().read(GENAI, limit)
        if data is None:
            what = f"there is no such file, nor {GENAI}"
            raise FerrumError("config-unreadable", what, str(self.path / name), "put the model's config.json beside its file")
        try:
            values = json.loads(data)["model"]
            return json.dumps({ours: values[key] for key, ours in _GENAI_KEYS.items() if key in values}).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            where = str(self.path / GENAI)
            raise FerrumError("config-unreadable", "is not JSON with a model", where, "check the download") from None

    @property
    def quantized(self) -> bool:
        """What of the file is stored in blocks is kept so, and nothing else says whether there are any."""
        return True


def open_files(path: Path) -> ModelFiles:
    """Raises FerrumError for a GGUF file that is none, and for a folder of several models."""
    if is_gguf(path):
        return GgufFiles.of(path)
    file = saved_graph(path)
    return Folder(path) if file is None else Beside(folder_of(file))

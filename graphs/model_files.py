"""What a model brings beside its weights, by the file names of a Hugging Face folder: from a folder, or made of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ferrum.errors import FerrumError
from ferrum.graphs.gguf.files import MAX_BYTES, GgufFiles
from ferrum.graphs.weights.gguf import is_gguf


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


def open_files(path: Path) -> ModelFiles:
    """Raises FerrumError for a GGUF file that is none."""
    if is_gguf(path):
        return GgufFiles.of(path)
    return Folder(path)

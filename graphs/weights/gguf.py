"""A model in one GGUF file, or in several that `llama-gguf-split` made of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError
from ferrum.graphs.weights.gguf_file import GgufFile
from ferrum.graphs.weights.gguf_values import Malformed, Strings
from ferrum.graphs.weights.inside import inside
from ferrum.graphs.weights.safetensors import fault

SUFFIX = ".gguf"
MAX_SHARDS = 1000
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# What a file is instead of a model, by ``general.type`` or ``general.architecture``.
_OTHERS = {
    "mmproj": "the vision or audio part (mmproj) of a model, not the model",
    "clip": "the vision or audio part (mmproj) of a model, not the model",
    "adapter": "a LoRA adapter, not a model",
    "imatrix": "an importance matrix, not a model",
    "vocab": "a vocabulary without weights",
}


@dataclass(frozen=True)
class Gguf:
    """``files`` in order; the first has the metadata."""

    files: tuple[GgufFile, ...]

    @property
    def path(self) -> Path:
        return self.files[0].path

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the metadata. Raises FerrumError (checkpoint-corrupt) when it is of another kind."""
        value = self.files[0].metadata.get(key)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise fault(self.path, f"metadata {key}", f"is a {type(value).__name__}, not a {kinds[0].__name__}")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings; empty when there is none."""
        try:
            strings = self.get(key, Strings)
            return strings.texts() if strings else []
        except Malformed as error:
            raise fault(self.path, f"metadata {key}", str(error)) from None

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture", str, ""))


def is_gguf(path: Path) -> bool:
    return path.suffix == SUFFIX and not path.is_dir()


def shard_names(name: str) -> list[str]:
    """The names of all files that ``name`` is one of; itself when it is alone."""
    found = _SHARD.fullmatch(name)
    count = int(found["count"]) if found else 1
    if not found or not 0 < int(found["number"]) <= count <= MAX_SHARDS:
        return [name]
    return [f"{found['stem']}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]


def open_gguf(path: Path) -> Gguf:
    """Raises FerrumError: checkpoint-missing (a shard is not there), checkpoint-corrupt, format-unsupported (no model)."""
    names = shard_names(path.name)
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        what = f"{len(missing)} of {len(names)} files are missing: {', '.join(missing[:3])}"
        raise FerrumError("checkpoint-missing", what, path.name, "finish the download")
    files: list[GgufFile] = []
    try:
        for name in names:
            files.append(GgufFile(path if len(names) == 1 else inside(path.parent, name)))
        return _checked(Gguf(tuple(files)))
    except BaseException:
        for file in files:
            file.close()
        raise


def _checked(model: Gguf) -> Gguf:
    for word in (str(model.get("general.type", str, "")), model.architecture):
        if word in _OTHERS:
            raise FerrumError("format-unsupported", f"this is {_OTHERS[word]}", model.path.name, "give the model's own file")
    count, total = len(model.files), sum(len(file.tensors) for file in model.files)
    if not total:
        raise FerrumError("format-unsupported", f"this is {_OTHERS['vocab']}", model.path.name, "give the model's own file")
    for number, file in enumerate(model.files):
        part = Gguf((file,))
        said = (part.get("split.no", int, 0), part.get("split.count", int, 1) or 1)
        if said != (number, count):
            what = f"says that it is part {said[0] + 1} of {said[1]}, its name says part {number + 1} of {count}"
            raise fault(file.path, "metadata split.no", what)
    expected = model.get("split.tensors.count", int, total) if count > 1 else total
    if total != expected or len({name for file in model.files for name in file.tensors}) != total:
        what = f"{total} tensors are in {count} files, which say {expected}, or some are there twice"
        raise fault(model.path, "the model", what)
    return model

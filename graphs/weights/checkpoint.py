"""A checkpoint: a folder with one safetensors file or several with an index, or a GGUF file; read by name without a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Expr, Tensor
from ferrum.graphs.weights.inside import inside
from ferrum.graphs.weights.safetensors import SafetensorsFile, TensorInfo, occurrences
from ferrum.pack.names import check_relative_path
from ferrum.pack.pages import give_back

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX_BYTES = 64 << 20
MAX_INDEXED = 1 << 18
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
DIGEST_CHUNK = 16 << 20


class MappedFile(Protocol):
    """One shard. ``read`` returns views of ``map``."""

    @property
    def map(self) -> mmap: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def read(self, name: str) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model, mapped. ``files`` are the shards in name order; ``where`` says which shard has a tensor.

    ``meanings``: where the model's tensors are not stored under their own names and as they are, what each is of those stored;
    ``aside``: stored tensors that are none of the model's, but say something of it that was read when it was opened; ``unused``:
    those of them that nothing is done with.
    """

    folder: Path
    files: tuple[MappedFile, ...]
    where: Mapping[str, MappedFile]
    meanings: Mapping[str, Expr] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.where))

    def __contains__(self, name: str) -> bool:
        return name in self.where

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(dtype as f32, bf16, f16, i8 …, shape). Raises FerrumError (tensor-missing)."""
        info = self._file(name).tensors[name]
        return info.dtype, info.shape

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapped file; bf16 as uint16 bits. Raises FerrumError (tensor-missing)."""
        return self._file(name).read(name)

    def nbytes(self) -> int:
        return sum(info.nbytes for file in self.files for info in file.tensors.values())

    def digest(self) -> str:
        """SHA-256 (hex) over names, dtypes, shapes and bytes of all tensors in name order: the same for any sharding."""
        total = hashlib.sha256()
        for name in self.names():
            dtype, shape = self.info(name)
            total.update(f"{name}\0{dtype}\0{','.join(map(str, shape))}\0".encode())
            data = self.read(name).reshape(-1).view(np.uint8)
            for start in range(0, len(data), DIGEST_CHUNK):
                total.update(data[start : start + DIGEST_CHUNK].data)
                self.give_back()
        return total.hexdigest()

    def give_back(self) -> None:
        """Release the pages that are in memory; what is touched again is read again."""
        for file in self.files:
            give_back(file.map)

    def close(self) -> None:
        """Unmap the files; views that are still held keep their file mapped."""
        for file in self.files:
            try:
                file.map.close()
            except BufferError:
                continue

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def model_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that the model knows."""
        if self.meanings:
            return {name: e.shape if isinstance(e, Tensor) else e.type.shape for name, e in self.meanings.items()}
        return {name: self.info(name)[1] for name in self.names()}

    def _file(self, name: str) -> MappedFile:
        if name not in self.where:
            raise FerrumError(
                "tensor-missing", f"there is no tensor {name}", self.folder.name, "compare the model with its config"
            )
        return self.where[name]


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``. Raises FerrumError as ``open_checkpoint`` does."""
    if not folder.is_dir():
        raise FerrumError(
            "checkpoint-missing", "there is no such folder", str(folder), "name a folder with config.json and weights"
        )
    if (folder / INDEX).exists() and not (folder / SINGLE).exists():  # beside it an index is of other files
        return _open_sharded(folder)
    single = SINGLE if (folder / SINGLE).exists() else _only_file(folder)
    file = SafetensorsFile(inside(folder, single))
    return Checkpoint(folder, (file,), dict.fromkeys(file.tensors, file))


def _only_file(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        what = f"{len(found)} safetensors files without {INDEX}"
        raise FerrumError("checkpoint-missing", what, folder.name, "download the index too")
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        what = f"{pickled[0]} is pickled: loading it can run any code"
        raise FerrumError("checkpoint-pickle", what, folder.name, "use a safetensors version of the model")
    raise FerrumError("checkpoint-missing", "there are no weights", folder.name, f"put {SINGLE} there")


class Index(msgspec.Struct):
    """Which file has a tensor; what else an index says is passed over."""

    weight_map: dict[str, str]


def _weight_map(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("too large")
        data = path.read_bytes()
        if occurrences(memoryview(data), b":") > MAX_INDEXED:
            raise ValueError(f"more than {MAX_INDEXED} tensors")
        return msgspec.json.decode(data, type=Index).weight_map
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        what = f"weight_map cannot be read: {str(error)[:120]}"
        raise FerrumError("checkpoint-corrupt", what, INDEX, "download the file again") from None


def _open_sharded(folder: Path) -> Checkpoint:
    """What the index leaves out of a file that it names is the model's as well."""
    table = _weight_map(inside(folder, INDEX))
    shards = sorted(set(table.values()))
    wrong = [shard for shard in shards if "/" in shard or not shard.endswith(".safetensors")]
    if wrong:
        what = f"{wrong[0][:80]!r} is not a safetensors file of this folder"
        raise FerrumError("bad-path", what, INDEX, "use a safetensors version of the model")
    missing = [shard for shard in shards if not (folder / check_relative_path(shard, INDEX)).exists()]
    if missing:
        what = f"{len(missing)} of {len(shards)} files are missing: {', '.join(missing[:3])}"
        raise FerrumError("checkpoint-missing", what, folder.name, "finish the download")
    files: dict[str, SafetensorsFile] = {}
    try:
        for shard in shards:
            files[shard] = SafetensorsFile(inside(folder, shard))
        absent = [name for name, shard in table.items() if name not in files[shard].tensors]
        if absent:
            what = f"{len(absent)} tensors are not in their files, first {absent[0][:80]}"
            raise FerrumError("checkpoint-corrupt", what, INDEX, "download the files again")
    except BaseException:
        for file in files.values():
            file.map.close()
        raise
    where: dict[str, MappedFile] = {name: file for file in files.values() for name in file.tensors}
    return Checkpoint(folder, tuple(files.values()), where | {name: files[shard] for name, shard in table.items()})

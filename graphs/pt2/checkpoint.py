"""The tensors of a .pt2 file by name, mapped: parameters, buffers and constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.pt2.archive import CONSTANTS, WEIGHTS, Archive
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.safetensors import DTYPES, TensorInfo, fault
from ferrum.pack.names import is_tensor_name

MAX_AXES = 8
# torch's numbers of dtypes → those of safetensors. Source: torch/_export/serde/schema.py, ScalarType.
NUMBERS = {1: "U8", 2: "I8", 3: "I16", 4: "I32", 5: "I64", 6: "F16", 7: "F32", 8: "F64", 12: "BOOL", 13: "BF16",
           29: "F8_E4M3", 30: "F8_E5M2"}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """``parameters``: names of those tensors that were trained; ``constants``: of those that no module's state has; ``same``: of
    a tensor that is another one, the other's name."""

    archive: Archive
    tensors: Mapping[str, TensorInfo]
    parameters: frozenset[str]
    constants: frozenset[str]
    same: Mapping[str, str]

    @property
    def map(self) -> mmap:
        return self.archive.map

    def read(self, name: str) -> NDArray[Any]:
        info = self.tensors[name]
        count = info.nbytes // np.dtype(info.storage).itemsize
        return np.frombuffer(self.archive.map, info.storage, count, info.offset).reshape(info.shape)


def open_exported_checkpoint(path: Path) -> Checkpoint:
    """Raises FerrumError: checkpoint-corrupt, checkpoint-unreadable, checkpoint-pickle, format-unsupported."""
    archive = Archive(path)
    try:
        file = tensors_of(archive)
    except BaseException:
        archive.close()
        raise
    return Checkpoint(path, (file,), dict.fromkeys(file.tensors, file))


def tensors_of(archive: Archive) -> Exported:
    tensors: dict[str, TensorInfo] = {}
    parameters: set[str] = set()
    constants: set[str] = set()
    same: dict[str, str] = {}
    first: dict[TensorInfo, str] = {}
    for folder, suffix in ((WEIGHTS, "weights_config.json"), (CONSTANTS, "constants_config.json")):
        given = archive.json(folder, suffix)
        table = given.get("config") if isinstance(given, dict) else None
        if not isinstance(table, dict):
            archive.program()  # which may have been written by another version of torch
            raise fault(archive.path, suffix, "is missing, or lists no tensors")
        constants |= set(table) if folder == CONSTANTS else set()
        for name, entry in table.items():
            info = tensors[name] = described(archive, folder, name, entry)
            same[name] = first.setdefault(info, name)
            if entry.get("is_param") is True:
                parameters.add(name)
    return Exported(archive, tensors, frozenset(parameters), frozenset(constants), same)


def described(archive: Archive, folder: str, name: str, entry: Any) -> TensorInfo:
    """Where a tensor lies. Raises FerrumError (checkpoint-corrupt, checkpoint-pickle)."""
    field = f"tensor {name[:80]}"
    if not is_tensor_name(name) or not isinstance(entry, dict):
        raise fault(archive.path, field, "has no visible name, or is not described")
    meta, path = entry.get("tensor_meta"), entry.get("path_name")
    if entry.get("use_pickle") is not False or not isinstance(meta, dict):
        what = f"{name[:80]} is pickled: loading it can run any code"
        raise FerrumError("checkpoint-pickle", what, archive.path.name, "save the program with plain tensors")
    member = archive.members.get(f"{folder}{path}")
    kind = NUMBERS.get(meta["dtype"]) if isinstance(meta.get("dtype"), int) else None
    if member is None or kind is None:
        raise fault(archive.path, field, f"of type {str(meta.get('dtype'))[:20]} in {str(path)[:40]!r} is not there")
    dtype, storage = DTYPES[kind]
    shape, strides, (offset,) = (ints(archive, field, meta.get(key)) for key in ("sizes", "strides", "storage_offset"))
    if len(shape) > MAX_AXES or len(strides) != len(shape):
        raise fault(archive.path, field, f"has {len(shape)} sizes and {len(strides)} strides")
    nbytes = step = np.dtype(storage).itemsize
    for size, stride in zip(shape[::-1], strides[::-1], strict=True):
        if size > 1 and stride * step != nbytes:
            raise fault(archive.path, field, "does not lie row by row; save the program with contiguous tensors")
        nbytes *= size
        if nbytes > member.nbytes:
            break
    start = offset * step
    if nbytes > member.nbytes - start:
        raise fault(archive.path, field, f"needs {nbytes} bytes from {start} on of {member.nbytes}")
    return TensorInfo(dtype, storage, shape, member.offset + start, nbytes)


def ints(archive: Archive, field: str, given: Any) -> tuple[int, ...]:
    """Sizes as torch writes them: each an object that says that it is an integer."""
    each = given if isinstance(given, list) else [given]
    found: list[Any] = [one.get("as_int") if isinstance(one, dict) else None for one in each]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in found):
        raise fault(archive.path, field, "has sizes that are not known")
    return tuple(found)

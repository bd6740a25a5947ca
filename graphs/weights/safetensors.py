"""One safetensors file, mapped: the header is checked completely before anything else is touched.

Format: 8 bytes little-endian header length, a JSON object ``name → {dtype, shape, data_offsets}``, then the tensors' bytes
without gaps. Source: https://github.com/huggingface/safetensors (README, "Format"). Our own reader, because a header from a
stranger must neither allocate nor be believed: counts, products of dims and ranges are compared with the file's size.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.pack.names import is_tensor_name

MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 8
MAX_TENSORS = 1_000_000

# safetensors' dtype → (ours, numpy storage); the 8- and 16-bit floats that numpy lacks are raw bits
DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "F64": ("f64", np.float64),
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
    "F8_E4M3": ("f8e4m3", np.uint8),
    "F8_E5M2": ("f8e5m2", np.uint8),
    "I64": ("i64", np.int64),
    "I32": ("i32", np.int32),
    "I16": ("i16", np.int16),
    "I8": ("i8", np.int8),
    "U64": ("u64", np.uint64),
    "U32": ("u32", np.uint32),
    "U16": ("u16", np.uint16),
    "U8": ("u8", np.uint8),
    "BOOL": ("bool", np.bool_),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: our dtype name, numpy storage type, shape, and its first byte's position in the file."""

    dtype: str
    storage: type[np.generic]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """A mapped file. ``tensors`` describes every tensor; ``read`` returns views of the mapping."""

    def __init__(self, path: Path) -> None:
        """Map and check ``path``. Raises FerrumError (checkpoint-corrupt, checkpoint-unreadable) naming file and field."""
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise fault(path, "the file", f"has {size} bytes, a header length needs 8")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FerrumError(
                "checkpoint-unreadable", f"cannot be read: {error.strerror}", path.name, "download it again"
            ) from None
        try:
            self.tensors = parse_header(path, self.map, size)
        except BaseException:
            self.map.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        info = self.tensors[name]
        count = info.nbytes // np.dtype(info.storage).itemsize
        return np.frombuffer(self.map, info.storage, count, info.offset).reshape(info.shape)


def fault(path: Path, field: str, what: str) -> FerrumError:
    return FerrumError("checkpoint-corrupt", f"{field} {what}", path.name, "download the file again")


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key[:60]!r} twice")
        out[key] = value
    return out


def strict_json(data: bytes) -> Any:
    """JSON without repeated keys. Raises ValueError or RecursionError."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def parse_header(path: Path, data: mmap.mmap, size: int) -> dict[str, TensorInfo]:
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise fault(path, "header length", f"{length} is more than the file of {size} bytes allows")
    try:
        header = strict_json(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise fault(path, "header", f"is not a JSON object: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise fault(path, "header", "is not a JSON object")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise fault(path, "header", f"lists {len(header)} tensors, more than {MAX_TENSORS}")
    start = 8 + length
    tensors = {name: parse_entry(path, name, entry, start, size - start) for name, entry in header.items()}
    at = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != at:
            raise fault(path, f"tensor {name}", "overlaps another tensor or leaves a gap before it")
        at += info.nbytes
    if at != size:
        raise fault(path, "the file", f"has {size} bytes, its tensors end at {at}")
    return tensors


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def parse_entry(path: Path, name: str, entry: object, start: int, room: int) -> TensorInfo:
    if not is_tensor_name(name):
        raise fault(path, f"tensor name {name[:60]!r}", "is not visible ASCII")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault(path, f"tensor {name}", "must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise fault(path, f"tensor {name}: dtype", f"{str(dtype)[:40]!r} is unknown")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(is_count(dim) for dim in shape):
        raise fault(path, f"tensor {name}: shape", f"is not a list of at most {MAX_AXES} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(o) for o in offsets):
        raise fault(path, f"tensor {name}: data_offsets", "are not two positions")
    ours, storage = DTYPES[dtype]
    nbytes = np.dtype(storage).itemsize
    for dim in shape:
        nbytes *= dim
        if nbytes > room:
            raise fault(path, f"tensor {name}: shape", f"needs more than the {room} bytes of data in the file")
    begin, end = offsets
    if not begin <= end <= room or end - begin != nbytes:
        raise fault(path, f"tensor {name}: data_offsets", f"{begin}:{end} do not hold {nbytes} bytes inside of {room}")
    return TensorInfo(ours, storage, tuple(shape), start + begin, nbytes)

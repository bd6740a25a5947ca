"""One safetensors file, mapped: the header is checked completely before anything else is touched.

Format: 8 bytes little-endian header length, a JSON object ``name → {dtype, shape, data_offsets}``, then the tensors' bytes
without gaps. Source: https://github.com/huggingface/safetensors (README, "Format"). Our own reader, because a header from a
stranger must neither allocate nor be believed: counts, products of dims and ranges are compared with the file's size.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.pack.names import is_tensor_name

MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 8
MAX_TENSORS = 1 << 16  # of one file
_COMMAS = 3 + MAX_AXES  # of a tensor's entry
_RUN = 1 << 20

# safetensors' dtype → (ours, numpy storage); the 8- and 16-bit floats that numpy lacks are raw bits
DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "F64": ("f64", np.float64),
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
    "F8_E4M3": ("f8e4m3", np.uint8),
    "F8_E5M2": ("f8e5m2", np.uint8),
    "F8_E8M0": ("f8e8m0", np.uint8),
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


class Entry(msgspec.Struct, gc=False):
    """A tensor as the header says it, before anything of it is believed.

    Of the text table ``__metadata__``, which looks the same, other keys are passed over; these may be text there.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | str | None = None
    data_offsets: tuple[int, ...] | str | None = None


_HEADER = msgspec.json.Decoder(dict[str, Entry])


def occurrences(data: memoryview, byte: bytes) -> int:
    """How often a byte is there, without a copy of all of it."""
    return sum(bytes(data[start : start + _RUN]).count(byte) for start in range(0, len(data), _RUN))


def parse_header(path: Path, data: mmap.mmap, size: int) -> dict[str, TensorInfo]:
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise fault(path, "header length", f"{length} is more than the file of {size} bytes allows")
    with memoryview(data) as whole, whole[8 : 8 + length] as header:
        table = _table(path, header)
    start = 8 + length
    tensors = {name: parse_entry(path, name, entry, start, size - start) for name, entry in table.items()}
    at = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != at:
            raise fault(path, f"tensor {name}", "overlaps another tensor or leaves a gap before it")
        at += info.nbytes
    if at != size:
        raise fault(path, "the file", f"has {size} bytes, its tensors end at {at}")
    return tensors


def _table(path: Path, header: memoryview) -> dict[str, Entry]:
    """The header's tensors. What it may take of memory follows from how many objects and numbers there are, which is looked at
    first."""
    if occurrences(header, b"{") > MAX_TENSORS or occurrences(header, b",") > _COMMAS * MAX_TENSORS:
        raise fault(path, "header", f"lists more than {MAX_TENSORS} tensors")
    try:
        table = _HEADER.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise fault(path, "header", f"is not a table of tensors: {str(error)[:120]}") from None
    metadata = table.pop("__metadata__", Entry())
    for key in ("dtype", "shape", "data_offsets"):
        found = sum(1 for _ in re.finditer(b'"%s"' % key.encode(), header))
        if found != len(table) + (getattr(metadata, key) is not None):
            raise fault(path, "header", f"says {key} {found} times of {len(table)} tensors")
    return table


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def parse_entry(path: Path, name: str, entry: Entry, start: int, room: int) -> TensorInfo:
    if not is_tensor_name(name):
        raise fault(path, f"tensor name {name[:60]!r}", "is not visible ASCII")
    dtype, shape, offsets = entry.dtype, entry.shape, entry.data_offsets
    if dtype not in DTYPES:
        raise fault(path, f"tensor {name}: dtype", f"{str(dtype)[:40]!r} is unknown")
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(is_count(dim) for dim in shape):
        raise fault(path, f"tensor {name}: shape", f"is not a list of at most {MAX_AXES} sizes")
    if not isinstance(offsets, tuple) or len(offsets) != 2 or not all(is_count(o) for o in offsets):
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
    return TensorInfo(ours, storage, shape, start + begin, nbytes)

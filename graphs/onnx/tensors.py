"""Tensors of an ONNX file: where their bytes lie, in it or in files beside it; all is looked at before anything is read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.onnx.schema import DTYPES
from ferrum.graphs.onnx.wire import Malformed, Message, Span
from ferrum.graphs.weights.inside import inside
from ferrum.graphs.weights.safetensors import TensorInfo
from ferrum.pack.names import is_tensor_name

MAX_AXES = 8
MAX_FILES = 1000
MAX_WRITTEN_OUT = 1 << 16  # elements of a tensor whose numbers are integers of variable length
_STORAGE: Mapping[str, type[np.generic]] = {
    "f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": np.uint16, "i64": np.int64, "i32": np.int32, "i16": np.int16,
    "i8": np.int8, "u64": np.uint64, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8, "bool": np.bool_, "f8e4m3": np.uint8,
    "f8e5m2": np.uint8,
}  # fmt: skip


class Mapped:
    """A file, mapped; ``tensors`` of it by name."""

    def __init__(self, path: Path) -> None:
        """Raises FerrumError (checkpoint-unreadable)."""
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        try:
            if not path.is_file():  # to open a pipe would wait for ever
                raise FileNotFoundError(2, "it is not a regular file")
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if not self.size:
                    raise OSError(0, "it is empty")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise FerrumError("checkpoint-unreadable", what, path.name, "download it again") from None

    def read(self, name: str) -> NDArray[Any]:
        return view(self, self.tensors[name])


def view(file: Mapped, info: TensorInfo) -> NDArray[Any]:
    count = info.nbytes // np.dtype(info.storage).itemsize
    return np.frombuffer(file.map, info.storage, count, info.offset).reshape(info.shape)


@dataclass(frozen=True)
class OnnxTensor:
    """``info`` says where in ``file`` the elements are; those that were written out one by one are ``values``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Mapped | None = None
    info: TensorInfo | None = None
    values: NDArray[Any] | None = None

    def array(self) -> NDArray[Any]:
        """The elements; bf16 as its bits."""
        if self.values is not None:
            return self.values
        assert self.file is not None and self.info is not None
        return view(self.file, self.info)


@dataclass
class Files:
    """The model's file and those beside it that it names."""

    main: Mapped
    others: dict[str, Mapped] = field(default_factory=dict)

    def beside(self, name: str) -> Mapped:
        """Raises FerrumError (bad-path, checkpoint-unreadable)."""
        if name not in self.others:
            if len(self.others) >= MAX_FILES:
                raise Malformed(f"names more than {MAX_FILES} files")
            self.others[name] = Mapped(inside(self.main.path.parent, name))
        return self.others[name]

    def every(self) -> tuple[Mapped, ...]:
        return (self.main, *self.others.values())

    def tensor(self, message: Message, name: str) -> OnnxTensor:
        """Raises Malformed, FerrumError (bad-path, checkpoint-unreadable)."""
        if not is_tensor_name(name):
            raise Malformed("has a name that is not visible ASCII")
        number = message.get("dtype", 0)
        if number not in DTYPES:
            raise Malformed(f"has elements of type {number}, which are not read")
        dtype, shape = DTYPES[number][1], shape_of(message)
        storage = _STORAGE[dtype]
        count, nbytes = 1, np.dtype(storage).itemsize
        for dim in shape:
            count, nbytes = count * dim, nbytes * dim
            if nbytes > 1 << 62:
                raise Malformed(f"of shape {list(shape)} is larger than any file")
        if "segment" in message:
            raise Malformed("is cut into segments")
        file, start = self.main, self.inside(message, nbytes)
        if message.get("location", 0) == 1:
            file, start = self.outside(message, nbytes)
        elif start < 0:
            return OnnxTensor(name, dtype, shape, values=written_out(message, dtype, count).reshape(shape))
        info = TensorInfo(dtype, storage, shape, start, nbytes)
        return OnnxTensor(name, dtype, shape, file, info, None if nbytes else np.zeros(shape, storage))

    def inside(self, message: Message, nbytes: int) -> int:
        """Where the bytes begin in the model's own file; -1: they are numbers, written out."""
        rows: list[Span] = [message["raw"]] if "raw" in message else [*message.get("floats", ()), *message.get("doubles", ())]
        if len(rows) != 1:  # a float may have a field of its own
            if rows:
                raise Malformed("has its numbers in several places")
            return -1
        if rows[0].size != nbytes:
            raise Malformed(f"has {rows[0].size} bytes, its shape needs {nbytes}")
        return rows[0].start

    def outside(self, message: Message, nbytes: int) -> tuple[Mapped, int]:
        said = {entry.get("key", ""): entry.get("value", "") for entry in message.get("external", ())}
        offset, length = (position(said, key, default) for key, default in (("offset", 0), ("length", nbytes)))
        file = self.beside(said.get("location", ""))
        if length != nbytes:
            raise Malformed(f"has {length} bytes in {file.path.name}, its shape needs {nbytes}")
        if offset > file.size or nbytes > file.size - offset:
            raise Malformed(f"ends behind the end of {file.path.name}, which has {file.size} bytes")
        return file, offset


def position(said: Mapping[str, str], key: str, default: int) -> int:
    value = said.get(key, str(default))
    if not (value.isascii() and value.isdigit() and len(value) <= 19):
        raise Malformed(f"has the {key} {value[:40]!r}, which is no position")
    return int(value)


def shape_of(message: Message) -> tuple[int, ...]:
    shape = tuple(message.get("dims", ()))
    if len(shape) > MAX_AXES or any(dim < 0 for dim in shape):
        raise Malformed(f"has the shape {str(list(shape))[:60]}")
    return shape


def written_out(message: Message, dtype: str, count: int) -> NDArray[Any]:
    """Integers, truth values, and the bits of narrow floats."""
    key = {"i64": "int64s", "u64": "uint64s", "u32": "uint64s"}.get(dtype, "int32s")
    numbers = message.get(key, [])
    if count > MAX_WRITTEN_OUT:
        raise Malformed(f"has {count} numbers that are written out one by one; export it with raw data")
    if len(numbers) != count:
        raise Malformed(f"has {len(numbers)} numbers, its shape needs {count}")
    storage = np.dtype(_STORAGE[dtype])
    bits = np.array([number & ((1 << 64) - 1) for number in numbers], np.uint64)
    if dtype == "bool":
        return bits != 0
    return bits.astype(f"<u{storage.itemsize}").view(storage)

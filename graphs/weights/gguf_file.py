"""One GGUF file, mapped: metadata and tensors, checked completely before anything else is touched.

Format: magic, version, number of tensors, number of metadata pairs; the pairs (key, type, value); the tensors (name, dims with
the fastest first, type, offset); then, aligned, the tensors' bytes. Source: ggml's ``docs/gguf.md``. Our own reader, as for
safetensors: sizes, counts, offsets and alignment of a file from a stranger are believed only when they fit the file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.ggml.table import BLOCKS
from ferrum.graphs.weights.gguf_values import Cursor, Malformed
from ferrum.graphs.weights.safetensors import TensorInfo, fault
from ferrum.pack.names import is_tensor_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_AXES = 4
MAX_ALIGNMENT = 1 << 16
MAX_KEY = (1 << 16) - 1

# number of a type → our dtype and numpy storage, or the name of a block
PLAIN: dict[int, tuple[str, type[np.generic]]] = {
    0: ("f32", np.float32), 1: ("f16", np.float16), 30: ("bf16", np.uint16), 28: ("f64", np.float64),
    24: ("i8", np.int8), 25: ("i16", np.int16), 26: ("i32", np.int32), 27: ("i64", np.int64),
}  # fmt: skip
BLOCKED: dict[int, str] = {
    2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k",
    16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 29: "iq1_m",
    34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip


class GgufFile:
    """``metadata`` by key, ``tensors`` by name; ``blocks`` names the block type of those that are stored as bytes.

    Shapes have the fastest axis last.
    """

    def __init__(self, path: Path) -> None:
        """Map and check ``path``. Raises FerrumError (checkpoint-corrupt, checkpoint-unreadable, format-unsupported)."""
        self.path = path
        try:
            if not path.is_file():  # to open a pipe would wait for ever
                raise FileNotFoundError(2, "it is not a regular file")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 24:
                    raise fault(path, "the file", f"has {size} bytes, a header needs 24")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FerrumError(
                "checkpoint-unreadable", f"cannot be read: {error.strerror}", path.name, "download it again"
            ) from None
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.blocks: dict[str, str] = {}
        self._field = "the header"
        try:
            self._parse(Cursor(self.map, size))
        except Malformed as error:
            self.close()
            raise fault(path, self._field, str(error)) from None
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        info = self.tensors[name]
        count = info.nbytes // np.dtype(info.storage).itemsize
        return np.frombuffer(self.map, info.storage, count, info.offset).reshape(info.shape)

    def close(self) -> None:
        self.metadata.clear()  # arrays of numbers are views of the map
        with contextlib.suppress(BufferError):  # a traceback or a caller holds one of them
            self.map.close()

    def _parse(self, cursor: Cursor) -> None:
        if self.map[:4] != MAGIC:
            raise Malformed(f"begins with {self.map[:4]!r}, not with {MAGIC!r}")
        cursor.skip(4)
        version = cursor.u32()
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "the file is big-endian" if swapped else f"GGUF version {version} is not read (read: 2 and 3)"
            raise FerrumError("format-unsupported", what, self.path.name, "use a newer conversion of the model")
        self._field = "number of tensors"
        tensors = cursor.u64()
        if tensors > min(MAX_TENSORS, cursor.size // 32):
            raise Malformed(f"is {tensors}")
        self._field = "number of metadata pairs"
        pairs = cursor.u64()
        if pairs > min(MAX_PAIRS, cursor.size // 13):
            raise Malformed(f"is {pairs}")
        for number in range(pairs):
            self._pair(cursor, number)
        self._tensors(cursor, tensors)

    def _pair(self, cursor: Cursor, number: int) -> None:
        self._field = f"metadata key {number}"
        key = cursor.text(MAX_KEY)
        if not is_tensor_name(key):
            raise Malformed(f"{key[:60]!r} is not visible ASCII")
        if key in self.metadata:
            raise Malformed(f"{key} is there twice")
        self._field = f"metadata {key[:80]}"
        self.metadata[key] = cursor.value(cursor.u32())

    def _tensors(self, cursor: Cursor, count: int) -> None:
        self._field = "metadata general.alignment"
        alignment = self.metadata.get("general.alignment", 32)
        usable = isinstance(alignment, int) and 0 < alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        if isinstance(alignment, bool) or not usable:
            raise Malformed(f"is {str(alignment)[:40]}, not a power of two up to {MAX_ALIGNMENT}")
        relative = {}
        for number in range(count):
            self._field = f"tensor {number}"
            name, found, at = self._tensor(cursor)
            if at % alignment:
                raise Malformed(f"begins at {at}, which is not a multiple of {alignment}")
            relative[name] = (at, found)
        start = -(-cursor.at // alignment) * alignment
        end = 0
        for name, (at, found) in sorted(relative.items(), key=lambda item: item[1][0]):
            self._field = f"tensor {name}"
            if at < end:
                raise Malformed("overlaps another tensor")
            end = at + found.nbytes
            if end > cursor.size - start:
                raise Malformed(f"ends {end - max(0, cursor.size - start)} bytes behind the end of the file")
            self.tensors[name] = TensorInfo(found.dtype, found.storage, found.shape, start + at, found.nbytes)

    def _tensor(self, cursor: Cursor) -> tuple[str, TensorInfo, int]:
        """A tensor's name, what it is, and where it begins relative to the first."""
        name = cursor.text(MAX_KEY)
        if not is_tensor_name(name):
            raise Malformed(f"is called {name[:60]!r}, which is not visible ASCII")
        if name in self.tensors:
            raise Malformed(f"{name} is there twice")
        self._field = f"tensor {name}"
        axes = cursor.u32()
        if not 0 < axes <= MAX_AXES:
            raise Malformed(f"has {axes} axes")
        dims = tuple(cursor.u64() for _ in range(axes))[::-1]
        kind = cursor.u32()
        dtype, storage, width = self._storage(name, kind, dims[-1])
        shape = (*dims[:-1], width)
        nbytes = np.dtype(storage).itemsize
        for dim in shape:
            nbytes *= dim
            if dim < 1 or nbytes > cursor.size:
                raise Malformed(f"of shape {list(dims)} does not fit the file of {cursor.size} bytes")
        info = TensorInfo(dtype, storage, shape, 0, nbytes)
        self.tensors[name] = info
        return name, info, cursor.u64()

    def _storage(self, name: str, kind: int, width: int) -> tuple[str, type[np.generic], int]:
        """Dtype, numpy type and length of a stored row of ``width`` values."""
        if kind in PLAIN:
            return *PLAIN[kind], width
        if kind not in BLOCKED:
            raise Malformed(f"is of the unknown type {kind}")
        block = BLOCKS[BLOCKED[kind]]
        if width % block.size:
            raise Malformed(f"has rows of {width}, which are not whole blocks of {block.size}")
        self.blocks[name] = BLOCKED[kind]
        return "u8", np.uint8, width // block.size * block.nbytes

"""Values of a GGUF header: numbers, strings and arrays, each compared with what is left of the file before it is taken."""

from __future__ import annotations

import mmap
import struct
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_ITEMS = 1 << 21  # strings and inner arrays of a whole header; the largest vocabularies with their merges have a third
MAX_STRING = 1 << 26
MAX_DEPTH = 4

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


class Malformed(ValueError):
    """What is wrong with a header, in a few words."""


@dataclass(frozen=True)
class Strings:
    """An array of strings, by the place of each in the file: they are decoded when they are asked for."""

    data: mmap.mmap
    starts: array[int]

    def __len__(self) -> int:
        return len(self.starts)

    def texts(self) -> list[str]:
        """Raises Malformed for what is not UTF-8."""
        data, found = self.data, []
        for start in self.starts:
            length = int.from_bytes(data[start : start + 8], "little")
            found.append(utf8(data[start + 8 : start + 8 + length]))
        return found


def utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("holds text that is not UTF-8") from None


class Cursor:
    """A place in the header. ``at`` never passes the end of the file."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at, self.items = data, size, 0, MAX_ITEMS

    def skip(self, length: int) -> int:
        """Past ``length`` bytes; where they begin."""
        start = self.at
        if length > self.size - start:
            raise Malformed(f"needs {length} bytes where the file has {self.size - start}")
        self.at += length
        return start

    def u32(self) -> int:
        return int(struct.unpack_from("<I", self.data, self.skip(4))[0])

    def u64(self) -> int:
        return int(struct.unpack_from("<Q", self.data, self.skip(8))[0])

    def count(self, least_bytes: int) -> int:
        """A number of things that take at least so many bytes each."""
        count = self.u64()
        if count > (self.size - self.at) // least_bytes:
            raise Malformed(f"has {count} entries where the file has {self.size - self.at} bytes")
        return count

    def string_place(self) -> int:
        """Past a string; where its length stands."""
        start = self.at
        length = self.u64()
        if length > MAX_STRING:
            raise Malformed(f"has a string of {length} bytes")
        self.skip(length)
        return start

    def text(self, longest: int = MAX_STRING) -> str:
        start = self.string_place()
        if self.at - start - 8 > longest:
            raise Malformed(f"has {self.at - start - 8} bytes, more than {longest}")
        return utf8(self.data[start + 8 : self.at])

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number as int, float or bool, a string, an array of numbers, ``Strings``, or a list of arrays."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(depth)
        if kind not in NUMBERS:
            raise Malformed(f"has the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind])
        number = np.frombuffer(self.data, dtype, 1, self.skip(dtype.itemsize))[0].item()
        return self._bool(number) if kind == BOOL else number

    def _bool(self, number: int) -> bool:
        if number > 1:
            raise Malformed(f"is {number} where it is true or false")
        return number == 1

    def _array(self, depth: int) -> Any:
        kind = self.u32()
        if kind in NUMBERS:
            dtype = np.dtype(NUMBERS[kind])
            count = self.count(dtype.itemsize)
            return np.frombuffer(self.data, dtype, count, self.skip(count * dtype.itemsize))
        if kind not in (STRING, ARRAY) or depth == MAX_DEPTH:
            raise Malformed(f"has elements of type {kind} at depth {depth}")
        count = self.count(8 if kind == STRING else 12)
        self.items -= count
        if self.items < 0:
            raise Malformed(f"has more than {MAX_ITEMS} strings and arrays")
        if kind == ARRAY:
            return [self._array(depth + 1) for _ in range(count)]
        return Strings(self.data, array("Q", (self.string_place() for _ in range(count))))

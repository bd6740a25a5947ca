"""Protobuf messages read out of a mapped file by a literal table of fields; what is long stays where it is.

A message is ``(number << 3 | type)`` and a value, again and again: a variable-length integer, 8 or 4 bytes, or a length and
as many bytes (text, numbers in a row, an inner message). Source: protobuf.dev, "Encoding". Our own reader, as for safetensors
and GGUF: packages for it take a message into memory whole, in a multiple of its size. Fields that the table does not name are
passed over; how many values are read in all is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_TEXT = 1 << 16
MAX_NUMBERS = 1 << 17  # in one row of numbers

# By number: the field's name and its kind (int, float, text, bytes, blob, or a message's name); "*": any number of them.
Fields: TypeAlias = Mapping[int, tuple[str, str]]
Message: TypeAlias = dict[str, Any]


class Bytes(Protocol):
    def __getitem__(self, at: slice) -> bytes: ...


class Malformed(ValueError):
    """What is wrong, in words that follow the field's name."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Reader:
    """Reads messages of ``tables`` out of ``data``; ``most``: values that it may read."""

    def __init__(self, data: Bytes, tables: Mapping[str, Fields], most: int) -> None:
        self.data = data
        self.tables = tables
        self.left = most

    def read(self, kind: str, span: Span) -> Message:
        """Fields by name; those that are not there are missing. Raises Malformed."""
        table, found = self.tables[kind], Message()
        for number, wire, value in self.fields(span):
            if number not in table:
                continue
            name, of = table[number]
            many = of.startswith("*")
            values = self.values(of.lstrip("*"), wire, value, name)
            self.left -= len(values)
            if self.left < 0:
                raise Malformed("holds more parts than files of its size do")
            if many:
                found.setdefault(name, []).extend(values)
            elif values:
                found[name] = values[-1]
        return found

    def fields(self, span: Span) -> Iterator[tuple[int, int, int | Span]]:
        """(number, type, an integer or where its bytes are)."""
        at = span.start
        while at < span.end:
            key, at = self.varint(at, span.end)
            wire = key & 7
            if wire == VARINT:
                value, at = self.varint(at, span.end)
                yield key >> 3, wire, value
                continue
            if wire == LENGTH:
                size, at = self.varint(at, span.end)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                raise Malformed(f"has a field of type {wire} at byte {at}")
            if size > span.end - at:
                raise Malformed(f"has a field of {size} bytes at byte {at}, of which {span.end - at} are there")
            yield key >> 3, wire, Span(at, at + size)
            at += size

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An integer of seven bits a byte, the lowest first, and where it ends."""
        value = shift = 0
        for byte in self.data[at : min(at + 10, end)]:
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & ((1 << 64) - 1), at
            shift += 7
        raise Malformed(f"has an integer without an end at byte {at}")

    def values(self, kind: str, wire: int, value: int | Span, name: str) -> Sequence[Any]:
        """What a field holds: one value, or a row of numbers."""
        if isinstance(value, int):
            if kind != "int":
                raise Malformed(f"has an integer for {name}")
            return (signed(value),)
        if kind == "blob":
            return (value,)
        if kind == "int" and wire == LENGTH:
            return self.integers(value, name)
        if kind == "float":
            return self.floats(value, name)
        if wire != LENGTH or kind == "int":
            raise Malformed(f"has a number for {name}")
        if kind in self.tables:
            return (self.read(kind, value),)
        if value.size > MAX_TEXT:
            raise Malformed(f"has {value.size} bytes for {name}, where {MAX_TEXT} are the most")
        data = bytes(self.data[value.start : value.end])
        return (data,) if kind == "bytes" else (text(data, name),)

    def integers(self, span: Span, name: str) -> list[int]:
        found, at = [], span.start
        while at < span.end:
            value, at = self.varint(at, span.end)
            found.append(signed(value))
            if len(found) > MAX_NUMBERS:
                raise Malformed(f"has more than {MAX_NUMBERS} numbers for {name}")
        return found

    def floats(self, span: Span, name: str) -> tuple[float, ...]:
        if span.size % 4 or span.size > 4 * MAX_NUMBERS:
            raise Malformed(f"has {span.size} bytes of floats for {name}")
        return struct.unpack(f"<{span.size // 4}f", self.data[span.start : span.end])


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"has text that is not UTF-8 for {name}") from None

"""Packs with chosen faults: the archive is put together from entries that may lie."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ferrum.pack.archive import Entry, central_header, end_records, local_header
from ferrum.pack.reader import PackFile


@dataclass(frozen=True)
class Part:
    """A member: its true data, and what is said about it."""

    entry: Entry
    data: bytes


def parts_of(path: Path) -> list[Part]:
    """The members of a sound pack."""
    raw = path.read_bytes()
    with PackFile(path) as file:
        return [Part(entry, raw[entry.data_offset : entry.end]) for entry in file.entries]


def assemble(parts: Sequence[Part], directory: Sequence[Entry] | None = None) -> bytes:
    """The file that has ``parts`` one after the other and a directory of ``directory`` (default: their entries)."""
    out = bytearray()
    for part in parts:
        out += local_header(part.entry) + part.data
    start = len(out)
    listed = [part.entry for part in parts] if directory is None else directory
    records = b"".join(central_header(entry) for entry in listed)
    return bytes(out + records + end_records(len(listed), start, len(records)))


def with_manifest(parts: Sequence[Part], edit: Callable[[bytes], bytes]) -> bytes:
    """The pack with an edited manifest of the same room and a CRC-32 that fits, as an attacker would make it."""
    first = parts[0]
    data = edit(first.data.rstrip(b" ")).ljust(len(first.data), b" ")
    assert len(data) == len(first.data)
    entry = replace(first.entry, crc=zlib.crc32(data))
    return assemble([Part(entry, data), *parts[1:]])

"""The zip structures of a pack, as functions of a few numbers.

The writer writes what these functions return and the reader compares against them, so no byte of a header has a
second legal value. Field layouts: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14-4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ferrum.pack.schema import MEMBER_ALIGNMENT

MAX_MEMBERS = 1024
MAX_MANIFEST = 16 << 20  # bytes
FAR = 0xFFFFFFFF  # a 32-bit field with this value defers to the zip64 field

LOCAL_MAGIC = b"PK\x03\x04"
CENTRAL_MAGIC = b"PK\x01\x02"
END64_MAGIC = b"PK\x06\x06"
LOCATOR_MAGIC = b"PK\x06\x07"
END_MAGIC = b"PK\x05\x06"

LOCAL = struct.Struct("<4s5H3I2H")
LOCAL_FIELDS = (
    "signature", "version needed", "flags", "compression", "time", "date", "CRC-32", "compressed size", "size",
    "name length", "extra length",
)  # fmt: skip
CENTRAL = struct.Struct("<4s6H3I5H2I")
CENTRAL_FIELDS = (
    "signature", "version made by", "version needed", "flags", "compression", "time", "date", "CRC-32",
    "compressed size", "size", "name length", "extra length", "comment length", "disk", "internal attributes",
    "external attributes", "offset",
)  # fmt: skip
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
END = struct.Struct("<4s4H2IH")
END_FIELDS = (
    "signature", "disk", "directory disk", "entries on disk", "entries", "directory size", "directory offset",
    "comment length",
)  # fmt: skip

_ZIP64_ID = 0x0001
_ALIGN_ID = 0xD935  # the extra field of Android's zipalign: u16 alignment, then zeros
_ALIGN_HEAD = struct.Struct("<3H")
_ZIP64_ROOM = 4 + 16
_SHORTEST_EXTRA = _ZIP64_ROOM + _ALIGN_HEAD.size
_VERSION = 20
_VERSION64 = 45
_MADE_BY = 3 << 8 | _VERSION64  # Unix
_DATE = 1 << 5 | 1  # 1980-01-01, the earliest a zip can say
_ATTRIBUTES = 0o100644 << 16


@dataclass(frozen=True)
class Entry:
    """One member: ``offset`` is that of its local header, ``nbytes`` and ``crc`` are those of its data."""

    name: str
    offset: int
    nbytes: int
    crc: int

    @property
    def data_offset(self) -> int:
        return data_offset(self.offset, self.name)

    @property
    def end(self) -> int:
        return self.data_offset + self.nbytes


def data_offset(header_offset: int, name: str) -> int:
    """Where the data of a member starts whose local header is at ``header_offset``: the next aligned place.

    Room for a zip64 field is always kept, so that the place does not depend on a size that is not known yet.
    """
    head = header_offset + LOCAL.size + len(name) + _SHORTEST_EXTRA
    return -(-head // MEMBER_ALIGNMENT) * MEMBER_ALIGNMENT


def local_header(entry: Entry) -> bytes:
    """All bytes from the local header's first to the data's first."""
    room = entry.data_offset - entry.offset - LOCAL.size - len(entry.name)
    zip64 = b""
    size = entry.nbytes
    if size >= FAR:
        zip64 = struct.pack("<2H2Q", _ZIP64_ID, 16, size, size)
        size = FAR
    padding = room - len(zip64)
    align = _ALIGN_HEAD.pack(_ALIGN_ID, padding - 4, MEMBER_ALIGNMENT) + bytes(padding - _ALIGN_HEAD.size)
    version = _VERSION64 if zip64 else _VERSION
    fixed = LOCAL.pack(LOCAL_MAGIC, version, 0, 0, 0, _DATE, entry.crc, size, size, len(entry.name), room)
    return fixed + entry.name.encode("ascii") + zip64 + align


def central_header(entry: Entry) -> bytes:
    """The member's entry in the central directory."""
    far: list[int] = []
    size, offset = entry.nbytes, entry.offset
    if size >= FAR:
        far += [size, size]
        size = FAR
    if offset >= FAR:
        far.append(offset)
        offset = FAR
    extra = struct.pack(f"<2H{len(far)}Q", _ZIP64_ID, 8 * len(far), *far) if far else b""
    fixed = CENTRAL.pack(
        CENTRAL_MAGIC, _MADE_BY, _VERSION64 if far else _VERSION, 0, 0, 0, _DATE, entry.crc, size, size,
        len(entry.name), len(extra), 0, 0, 0, _ATTRIBUTES, offset,
    )  # fmt: skip
    return fixed + entry.name.encode("ascii") + extra


def end_records(count: int, directory_offset: int, directory_size: int) -> bytes:
    """What follows the central directory; the zip64 pair is there only when the directory is past 4 GiB."""
    far = b""
    offset = directory_offset
    if directory_offset >= FAR:
        far = END64.pack(
            END64_MAGIC, END64.size - 12, _MADE_BY, _VERSION64, 0, 0, count, count, directory_size, directory_offset
        )  # fmt: skip
        far += LOCATOR.pack(LOCATOR_MAGIC, 0, directory_offset + directory_size, 1)
        offset = FAR
    return far + END.pack(END_MAGIC, 0, 0, count, count, directory_size, offset, 0)


def central_directory(entries: list[Entry]) -> bytes:
    """The directory and all that follows it; the file ends after these bytes."""
    directory = b"".join(central_header(entry) for entry in entries)
    start = entries[-1].end if entries else 0
    return directory + end_records(len(entries), start, len(directory))


def first_difference(kind: struct.Struct, fields: tuple[str, ...], found: bytes, expected: bytes) -> str:
    """The name of the first header field in which ``found`` differs from ``expected``; "extra field" when only later bytes do."""
    if len(found) >= kind.size:
        pairs = zip(fields, kind.unpack_from(found), kind.unpack_from(expected), strict=True)
        for field, a, b in pairs:
            if a != b:
                return field
    return "extra field"

"""Opening a pack: every number in it is checked before it is used, then the file is mapped read-only, without a copy."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

from ferrum.errors import FerrumError
from ferrum.pack import archive
from ferrum.pack.archive import CENTRAL, END, FAR, LOCAL, Entry
from ferrum.pack.check import check_manifest, damaged, decode_manifest
from ferrum.pack.names import is_member_name
from ferrum.pack.pages import give_back
from ferrum.pack.schema import MANIFEST_NAME, Manifest, MemberRecord
from ferrum.pack.trust import TrustState, require_trust

_CHUNK = 1 << 20
_SMALLEST = archive.data_offset(0, MANIFEST_NAME) + CENTRAL.size + END.size
_LARGEST_DIRECTORY = archive.MAX_MEMBERS * 512


class Pack:
    """An open pack. All views are read-only and share the mapped file.

    ``close`` forgets the mapping; memory that views still refer to stays mapped until they are gone.
    """

    def __init__(self, path: Path, mapped: mmap.mmap, manifest: Manifest, manifest_sha256: str, trust: TrustState) -> None:
        self.path = path
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256
        self.trust = trust
        self._mapped: mmap.mmap | None = mapped
        self._view = memoryview(mapped)
        self._members = {member.name: member for member in manifest.members}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def member(self, name: str) -> memoryview:
        """The bytes of a member, zero copy. Raises FerrumError when the pack has none of that name."""
        record = self._record(name)
        return self._view[record.offset : record.offset + record.nbytes]

    @property
    def weights(self) -> memoryview:
        return self.member("weights")

    def address(self, name: str) -> int:
        """The address of the member's first byte; valid while the pack is open."""
        import numpy as np  # not above: a server reads packs too and needs no numpy

        record = self._record(name)
        return int(np.frombuffer(self._view, np.uint8).ctypes.data) + record.offset

    def give_back(self) -> None:
        """Release the pages that are in memory; what is touched again is read again."""
        if self._mapped is not None:
            give_back(self._mapped)

    def close(self) -> None:
        """Safe to call twice."""
        if self._mapped is None:
            return
        with contextlib.suppress(BufferError):  # someone still holds a view; the mapping goes with the last one
            self._view.release()
            self._mapped.close()
        self._mapped = None

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _record(self, name: str) -> MemberRecord:
        if self._mapped is None:
            raise FerrumError("pack-closed", "the pack is closed", str(self.path), "open it again")
        if name not in self._members:
            raise FerrumError("pack-member-missing", f"the pack has no member {name!r}", str(self.path), "build the pack again")
        return self._members[name]


def open_pack(
    path: Path | str,
    trust: bool = False,
    check: Literal["manifest", "full"] = "manifest",
    *,
    state_dir: Path | None = None,
    config_dir: Path | None = None,
) -> Pack:
    """Open and check the pack at ``path``.

    Structure, manifest and trust are always checked, and the SHA-256 and CRC-32 of every member except ``weights``;
    ``check="full"`` adds ``weights``, so that no bit of the file is left unchecked. ``trust`` opens a pack that was
    neither built here nor signed by a trusted key; ``state_dir`` and ``config_dir`` say where the records and keys are
    (default: this user's). Raises FerrumError with one line that names member and field.
    """
    with PackFile(path) as file:
        state = require_trust(file.path, file.manifest_sha256, trust, state_dir, config_dir)
        for member in file.manifest.members:
            if check == "full" or member.name != "weights":
                file.check_member(member)
        return file.map(state)


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of a structurally sound pack, whoever made it: to list and describe it, not to run its code."""
    with PackFile(path) as file:
        return file.manifest


class PackFile:
    """The file of a pack with structure and manifest checked, not yet mapped. ``verify`` uses it to look at each member."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._fd = _open_regular(self.path)
        try:
            self.size = os.fstat(self._fd).st_size
            self.entries = self._read_directory()
            self._check_headers()
            data = self._read_manifest()
            self.manifest_sha256 = hashlib.sha256(data).hexdigest()
            self.manifest = decode_manifest(data, str(self.path))
            check_manifest(self.manifest, str(self.path))
            self._check_members()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PackFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def map(self, state: TrustState) -> Pack:
        """Map the whole file read-only. The file must not be changed in place while it is mapped; ferrum never does."""
        try:
            mapped = mmap.mmap(self._fd, self.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise FerrumError(
                "pack-unreadable", f"cannot map the file: {error}", str(self.path), "free memory and try again"
            ) from None
        return Pack(self.path, mapped, self.manifest, self.manifest_sha256, state)

    def check_member(self, member: MemberRecord, progress: Callable[[int], None] | None = None) -> None:
        """Compare SHA-256 and CRC-32 of the member's bytes; ``progress`` gets the number of bytes of each piece."""
        sha256, crc = hashlib.sha256(), 0
        for piece in self._pieces(member.offset, member.nbytes, member.name):
            sha256.update(piece)
            crc = zlib.crc32(piece, crc)
            if progress is not None:
                progress(len(piece))
        where = f"{self.path}: {member.name}"
        if sha256.hexdigest() != member.sha256:
            raise damaged("the SHA-256 of the member does not match", where)
        if crc != next(entry.crc for entry in self.entries if entry.name == member.name):
            raise damaged("the CRC-32 of the member does not match", where)

    def _pieces(self, offset: int, nbytes: int, what: str) -> Iterator[memoryview]:
        """The bytes in pieces of one reused buffer. Read, not mapped: a bad disk is then an error, not a signal."""
        buffer = memoryview(bytearray(min(_CHUNK, nbytes)))
        end = offset + nbytes
        while offset < end:
            try:
                count = os.preadv(self._fd, [buffer[: min(_CHUNK, end - offset)]], offset)
            except OSError as error:
                raise FerrumError(
                    "pack-unreadable", f"cannot read: {error.strerror}", f"{self.path}: {what}", "check the disk"
                ) from None
            if count == 0:
                raise damaged(f"the file ends within {what}", str(self.path))
            yield buffer[:count]
            offset += count

    def _read(self, offset: int, nbytes: int, what: str) -> bytes:
        return b"".join(bytes(piece) for piece in self._pieces(offset, nbytes, what))

    def _read_directory(self) -> list[Entry]:
        """Parse end records and central directory, and compare them with what the writer makes of the same entries."""
        where = f"{self.path}: end of central directory"
        if self.size < _SMALLEST:
            raise damaged(f"{self.size} bytes are too few for a pack", str(self.path))
        end = END.unpack(self._read(self.size - END.size, END.size, "end record"))
        if end[0] != archive.END_MAGIC:
            raise damaged("the file does not end like a pack: it is cut, has bytes behind its end, or is something else", where)
        count, length, start = end[4], end[5], end[6]
        if start == FAR:
            start, length = self._read_far_end(count, length)
        if not 1 <= count <= archive.MAX_MEMBERS:
            raise damaged(f"the number of entries {count} is not between 1 and {archive.MAX_MEMBERS}", f"{where}: entries")
        if length > _LARGEST_DIRECTORY or start + length > self.size:
            raise damaged(f"a directory of {length} bytes at {start} does not fit into the file", f"{where}: directory size")
        records = archive.end_records(count, start, length)
        if start + length + len(records) != self.size:
            raise damaged("directory and end records do not fill the file to its end", f"{where}: directory offset")
        found = self._read(start + length, len(records), "end records")
        if found != records:
            field = archive.first_difference(END, archive.END_FIELDS, found[-END.size :], records[-END.size :])
            raise damaged("the record is not as a pack has it", f"{where}: {field}")
        self.directory_offset = start
        return _parse_directory(self._read(start, length, "central directory"), count, str(self.path))

    def _read_far_end(self, count: int, length: int) -> tuple[int, int]:
        """Directory offset and size from the zip64 records, whose other bytes are compared by the caller."""
        where = f"{self.path}: zip64 end of central directory"
        room = archive.END64.size + archive.LOCATOR.size
        if self.size < FAR + room + END.size:
            raise damaged("a file this small cannot have zip64 end records", where)
        data = self._read(self.size - END.size - room, room, "zip64 end records")
        record = archive.END64.unpack_from(data)
        if record[0] != archive.END64_MAGIC or record[7] != count or record[8] != length:
            raise damaged("the record is missing or contradicts the record after it", where)
        return record[9], record[8]

    def _check_headers(self) -> None:
        """The members follow each other without gaps, and each local header is what its directory entry implies."""
        position = 0
        for entry in self.entries:
            where = f"{self.path}: {entry.name}"
            if entry.offset != position:
                raise damaged(f"the member's header is at {entry.offset} and must be at {position}", f"{where}: offset")
            if entry.end > self.directory_offset:
                raise damaged(f"{entry.nbytes} bytes do not fit before the central directory", f"{where}: size")
            expected = archive.local_header(entry)
            found = self._read(entry.offset, len(expected), f"local header of {entry.name}")
            if found != expected:
                field = archive.first_difference(LOCAL, archive.LOCAL_FIELDS, found, expected)
                if field == "extra field" and found[LOCAL.size :][: len(entry.name)] != entry.name.encode("ascii"):
                    field = "name"
                raise damaged(f"the local header's {field} is not what the central directory implies", f"{where}: {field}")
            position = entry.end
        if position != self.directory_offset:
            raise damaged(
                f"{self.directory_offset - position} bytes lie between the last member and the directory", str(self.path)
            )

    def _read_manifest(self) -> bytes:
        first = self.entries[0]
        where = f"{self.path}: {MANIFEST_NAME}"
        if first.name != MANIFEST_NAME:
            raise damaged(f"the first member is {first.name!r} and must be {MANIFEST_NAME!r}", str(self.path))
        if first.nbytes > archive.MAX_MANIFEST:
            raise damaged(f"{first.nbytes} bytes are more than a manifest may have ({archive.MAX_MANIFEST})", f"{where}: size")
        data = self._read(first.data_offset, first.nbytes, MANIFEST_NAME)
        if zlib.crc32(data) != first.crc:
            raise damaged("the CRC-32 of the member does not match", where)
        return data

    def _check_members(self) -> None:
        """The manifest's list of members is the archive's, in the same order."""
        found = [(entry.name, entry.data_offset, entry.nbytes) for entry in self.entries[1:]]
        listed = [(member.name, member.offset, member.nbytes) for member in self.manifest.members]
        where = f"{self.path}: {MANIFEST_NAME}: members"
        for index, (a, b) in enumerate(zip(found, listed, strict=False)):
            for field, x, y in zip(("name", "offset", "nbytes"), a, b, strict=True):
                if x != y:
                    raise damaged(f"the archive has {x!r} and the manifest {y!r}", f"{where}[{index}].{field}")
        if len(found) != len(listed):
            raise damaged(f"the archive has {len(found)} members and the manifest {len(listed)}", where)


def _open_regular(path: Path) -> int:
    where = str(path)
    try:
        # O_NONBLOCK: a FIFO must be refused, not waited for
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FerrumError(
            "pack-missing", "there is no such file", where, "check the path, or build it with ferrum compile"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FerrumError(
            "pack-unreadable", f"cannot open the pack: {reason}", where, "check the path and its permissions"
        ) from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise FerrumError("pack-unreadable", f"a pack is one file and this is {kind}", where, "give the path of a .fpk file")
    return fd


def _parse_directory(data: bytes, count: int, path: str) -> list[Entry]:
    """The entries of the central directory, which must be exactly ``data``."""
    entries: list[Entry] = []
    seen: set[str] = set()
    position = 0
    for index in range(count):
        where = f"{path}: central directory entry {index}"
        if position + CENTRAL.size > len(data):
            raise damaged("the directory ends within the entry", where)
        entry, length = _parse_entry(data, position, where)
        if entry.name in seen:
            raise damaged(f"the member {entry.name!r} is there twice", where)
        expected = archive.central_header(entry)
        found = data[position : position + length]
        if found != expected:
            field = archive.first_difference(CENTRAL, archive.CENTRAL_FIELDS, found, expected)
            raise damaged(f"the {field} of {entry.name} is not as a pack has it", f"{where}: {field}")
        seen.add(entry.name)
        entries.append(entry)
        position += length
    if position != len(data):
        raise damaged(f"{len(data) - position} bytes lie behind the last entry", f"{path}: central directory")
    return entries


def _parse_entry(data: bytes, position: int, where: str) -> tuple[Entry, int]:
    """One entry and its length in bytes; only bounds and name are checked here."""
    fields = CENTRAL.unpack_from(data, position)
    if fields[0] != archive.CENTRAL_MAGIC:
        raise damaged("the signature is wrong", f"{where}: signature")
    crc, size, offset = fields[7], fields[9], fields[16]
    name_length, extra_length, comment_length = fields[10:13]
    length = CENTRAL.size + name_length + extra_length + comment_length
    if position + length > len(data):
        raise damaged("name, extra field and comment do not fit into the directory", f"{where}: name length")
    start = position + CENTRAL.size
    raw = data[start : start + name_length]
    name = raw.decode("ascii", "replace")
    if not is_member_name(name):
        raise damaged(f"{name[:80]!r} is not a member name", f"{where}: name")
    far = data[start + name_length + 4 : start + name_length + extra_length]
    if size == FAR:  # zip64: size, compressed size, offset; each only if its 32-bit field is full
        size, far = int.from_bytes(far[:8], "little"), far[16:]
    if offset == FAR:
        offset = int.from_bytes(far[:8], "little")
    return Entry(name, offset, size, crc), length

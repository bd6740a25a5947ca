"""Writing a pack: members stream through one pass of hashing, the manifest is filled in last, the file appears whole."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.archive import MAX_MANIFEST, MAX_MEMBERS, Entry, central_directory, data_offset, local_header
from ferrum.pack.atomic import AtomicFile
from ferrum.pack.check import check_manifest
from ferrum.pack.names import is_member_name
from ferrum.pack.schema import MANIFEST_NAME, Manifest, MemberRecord
from ferrum.pack.trust import default_state_dir, record_built

DEFAULT_MANIFEST_ROOM = 1 << 20
_CHUNK = 1 << 20  # hashed and written while it is in the cache
_ZEROS = bytes(_CHUNK)


def encode_manifest(manifest: Manifest, room: int = 0) -> bytes:
    """Canonical JSON (sorted keys, no spaces, UTF-8), padded with spaces to ``room`` bytes. FerrumError if it does not fit."""
    data = msgspec.json.encode(manifest, order="sorted")
    if room and len(data) > room:
        raise FerrumError(
            "manifest-too-large",
            f"the manifest has {len(data)} bytes and {room} were kept for it",
            MANIFEST_NAME,
            "give PackWriter a larger manifest_room",
        )
    return data.ljust(room, b" ")


class MemberWriter:
    """An open member; a context manager. Bytes go to the file at once, hashed on the way."""

    def __init__(self, pack: PackWriter, name: str, header_offset: int) -> None:
        self.name = name
        self._pack = pack
        self._header_offset = header_offset
        self._sha256 = hashlib.sha256()
        self._crc = 0
        self._size = 0

    def tell(self) -> int:
        """Bytes written so far, which is the offset of the next one within the member."""
        return self._size

    def write(self, data: Any) -> int:
        """Append any C-contiguous bytes-like object (bytes, memoryview, numpy array); returns its length in bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, view.nbytes, _CHUNK):
            chunk = view[start : start + _CHUNK]
            self._sha256.update(chunk)
            self._crc = zlib.crc32(chunk, self._crc)
            self._pack._append(self, chunk)
            self._size += chunk.nbytes
        return view.nbytes

    def pad_to(self, offset: int) -> None:
        """Append zeros until ``tell()`` is ``offset``."""
        if offset < self._size:
            raise ValueError(f"{self.name}: offset {offset} lies before the {self._size} bytes already written")
        while self._size < offset:
            self.write(_ZEROS[: min(_CHUNK, offset - self._size)])

    def align(self, alignment: int) -> int:
        """Append zeros up to the next multiple of ``alignment`` bytes; returns the offset."""
        self.pad_to(-(-self._size // alignment) * alignment)
        return self._size

    def write_at(self, offset: int, data: Any) -> int:
        """``pad_to(offset)``, then ``write(data)``: places must be filled in ascending order."""
        self.pad_to(offset)
        return self.write(data)

    def __enter__(self) -> MemberWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._pack._close_member(self, self._crc, self._sha256.hexdigest())


class PackWriter:
    """A pack under construction at ``path``.

    ``manifest_room`` bytes are kept for the manifest, which comes first in the file and is known last.
    ``expected_bytes`` (0: unknown) is compared with the free space before anything is written. On any exception, and
    when ``finish`` is not reached, nothing is left and an older pack of the same name stays as it was.
    """

    def __init__(self, path: Path | str, manifest_room: int = DEFAULT_MANIFEST_ROOM, expected_bytes: int = 0) -> None:
        if not 0 < manifest_room <= MAX_MANIFEST:
            raise ValueError(f"manifest_room must be 1 to {MAX_MANIFEST}")
        self.path = Path(path)
        self.manifest_sha256 = ""  # set by finish
        self._room = manifest_room
        self._entries: list[Entry] = []
        self._records: list[MemberRecord] = []
        self._open: MemberWriter | None = None
        self._end = data_offset(0, MANIFEST_NAME) + manifest_room
        self._file = AtomicFile(self.path, expected_bytes=expected_bytes)
        try:
            self._file.append(bytes(self._end))
        except BaseException:
            self._file.abort()
            raise

    def member(self, name: str) -> MemberWriter:
        """Start the next member; the one before must be closed. ValueError for a bad or repeated name."""
        if self._open is not None:
            raise ValueError(f"member {self._open.name} is still open")
        if not is_member_name(name) or name == MANIFEST_NAME or name in {r.name for r in self._records}:
            raise ValueError(f"member name {name!r} is bad or taken")
        if len(self._records) >= MAX_MEMBERS - 1:
            raise ValueError(f"a pack holds at most {MAX_MEMBERS} members")
        start = self._end
        self._file.append(bytes(data_offset(start, name) - start))
        self._end = data_offset(start, name)
        self._open = MemberWriter(self, name, start)
        return self._open

    def add(self, name: str, data: Any) -> None:
        """A whole member at once."""
        with self.member(name) as member:
            member.write(data)

    def written(self, name: str) -> tuple[Path, int]:
        """The hidden file and the offset in it of a member that is complete; for reading back what was written."""
        self._file.flush()
        return self._file.temp, next(record.offset for record in self._records if record.name == name)

    def finish(
        self,
        manifest: Manifest,
        *,
        prove: Callable[[Path], Mapping[str, bytes] | None] | None = None,
        record: bool = True,
        state_dir: Path | None = None,
    ) -> Path:
        """Fill in the manifest, with its ``members`` replaced by what was written, and make the pack visible.

        ``prove`` is called with the path of the finished but still hidden file; if it raises, nothing becomes visible. What it
        returns are members that the proof adds.
        ``record`` notes in ``state_dir`` (default: this user's) that the pack was built here and may be opened without
        a signature. Returns ``path``. Raises FerrumError for a manifest that a reader would refuse.
        """
        self._seal(manifest)
        if prove is not None and (added := prove(self._file.temp)):
            self._file.cut(self._end)
            for name, member in added.items():
                self.add(name, member)
            self._seal(manifest)
        if record:  # before the pack is visible: a record without a pack is harmless, the other way round is not
            record_built(self.manifest_sha256, state_dir or default_state_dir(), self.path.name)
        self._file.commit()
        return self.path

    def _seal(self, manifest: Manifest) -> None:
        """Write what stands around the members, so that a reader can open the hidden file."""
        if self._open is not None:
            raise ValueError(f"member {self._open.name} is still open")
        complete = msgspec.structs.replace(manifest, members=list(self._records))
        check_manifest(complete, str(self.path))
        data = encode_manifest(complete, self._room)
        first = Entry(MANIFEST_NAME, 0, self._room, zlib.crc32(data))
        entries = [first, *self._entries]
        self._file.append(central_directory(entries))
        for entry in entries:
            self._file.write_at(entry.offset, local_header(entry))
        self._file.write_at(first.data_offset, data)
        self.manifest_sha256 = hashlib.sha256(data).hexdigest()

    def abort(self) -> None:
        """Leave nothing behind; safe to call twice and after ``finish``."""
        self._file.abort()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    def _append(self, member: MemberWriter, chunk: memoryview) -> None:
        if member is not self._open:
            raise ValueError(f"member {member.name} is closed")
        self._file.append(chunk)
        self._end += chunk.nbytes

    def _close_member(self, member: MemberWriter, crc: int, sha256: str) -> None:
        if member is not self._open:
            raise ValueError(f"member {member.name} is closed")
        self._open = None
        entry = Entry(member.name, member._header_offset, member.tell(), crc)
        self._entries.append(entry)
        self._records.append(MemberRecord(name=entry.name, offset=entry.data_offset, nbytes=entry.nbytes, sha256=sha256))

"""Files that clients leave on the server: bytes and a record each, in one folder, bounded in number and in size."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.atomic import write_atomic

MAX_FILES = 1_000
MAX_BYTES = 1 << 30  # of all files together
_ID = re.compile(r"(file-|batch_)[0-9a-f]{24}")


class FileRecord(msgspec.Struct, kw_only=True):
    """``owner``: the name of the key that brought it; only it sees the file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    owner: str = ""

    def shown(self) -> dict[str, object]:
        """As OpenAI's API has it."""
        fields = {name: getattr(self, name) for name in ("id", "bytes", "created_at", "filename", "purpose")}
        return {**fields, "object": "file", "status": "processed"}


R = TypeVar("R", bound=msgspec.Struct)


class FileStore:
    """Blocking calls, for a thread. Nothing is remembered but what the folder holds, so a restart changes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            what = f"cannot write: {error.strerror}"
            raise FerrumError("write-failed", what, str(folder), "choose a folder that you can write to") from None

    def path(self, name: str) -> Path:
        """Where the bytes of a file are; ``name`` is one that was made here."""
        assert _ID.fullmatch(name)
        return self.folder / f"{name}.data"

    def add(self, data: bytes, filename: str, purpose: str, owner: str) -> FileRecord:
        """Keep ``data``. Raises FerrumError "files-full", or when it cannot be written."""
        present = list(self.files())
        if len(present) >= MAX_FILES or sum(f.bytes for f in present) + len(data) > MAX_BYTES:
            raise FerrumError("files-full", "there is no more room for files", "file", "delete some")
        name = f"file-{secrets.token_hex(12)}"
        write_atomic(self.path(name), data, 0o600)
        return self._note(name, len(data), filename, purpose, owner)

    def adopt(self, path: Path, filename: str, owner: str) -> FileRecord:
        """Make an output of the finished ``path``, which moves."""
        name, size = f"file-{secrets.token_hex(12)}", path.stat().st_size
        path.replace(self.path(name))
        return self._note(name, size, filename, "batch_output", owner)

    def _note(self, name: str, size: int, filename: str, purpose: str, owner: str) -> FileRecord:
        record = FileRecord(id=name, bytes=size, created_at=int(time.time()), filename=filename, purpose=purpose, owner=owner)
        self.save(record.id, record)
        return record

    def save(self, name: str, record: msgspec.Struct) -> None:
        write_atomic(self.folder / f"{name}.json", msgspec.json.encode(record), 0o600)

    def find(self, name: str, kind: type[R], owner: str) -> R | None:
        """The record of that name, if it is ``owner``'s."""
        if not _ID.fullmatch(name):
            return None
        record = self._read(self.folder / f"{name}.json", kind)
        return record if record is not None and record.owner == owner else None  # type: ignore[attr-defined]

    def files(self, owner: str | None = None) -> Iterator[FileRecord]:
        return self._all("file-", FileRecord, owner)

    def records(self, kind: type[R], owner: str | None = None) -> Iterator[R]:
        """The batches, which have records and no bytes."""
        return self._all("batch_", kind, owner)

    def _all(self, prefix: str, kind: type[R], owner: str | None) -> Iterator[R]:
        for path in self.folder.glob(f"{prefix}*.json"):
            record = self._read(path, kind)
            if record is not None and owner in (None, record.owner):  # type: ignore[attr-defined]
                yield record

    @staticmethod
    def _read(path: Path, kind: type[R]) -> R | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

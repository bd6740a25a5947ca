"""The members of a .pt2 file: a zip of stored members below one folder, as ``torch.export.save`` writes it since torch 2.8.

What is pickled in it (sample inputs, tensors of classes of their own, objects) is never opened, for to open it can run any code.
Layout: ``torch/export/pt2_archive`` of torch.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ferrum.errors import FerrumError
from ferrum.graphs.weights.safetensors import fault, occurrences

SUFFIX = ".pt2"
MODELS, WEIGHTS, CONSTANTS = "models/", "data/weights/", "data/constants/"
OLD = "serialized_exported_program.json"
MAX_MEMBERS = 1 << 16
MAX_JSON = 256 << 20
MAX_PARTS = 1 << 22  # objects, lists and entries of a member of JSON
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True, slots=True)
class Member:
    offset: int
    nbytes: int


class Archive:
    """``members`` by their names below the archive's folder."""

    def __init__(self, path: Path) -> None:
        """Map and list ``path``. Raises FerrumError: checkpoint-corrupt, checkpoint-unreadable, format-unsupported."""
        self.path = path
        try:
            if not path.is_file():  # to open a pipe would wait for ever
                raise FileNotFoundError(2, "it is not a regular file")
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size < _END.size:
                    raise fault(path, "the file", f"has {self.size} bytes, an archive needs more")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise FerrumError("checkpoint-unreadable", what, path.name, "download it again") from None
        try:
            self.members = self._listed()
        except BaseException:
            self.map.close()
            raise

    def close(self) -> None:
        self.map.close()

    def _listed(self) -> dict[str, Member]:
        at = self.map.rfind(b"PK\5\6", max(0, self.size - (1 << 16) - _END.size))
        if at < 0 or at + _END.size > self.size:
            raise fault(self.path, "the file", "is no archive: torch.export.save writes one")
        directory = _END.unpack_from(self.map, at)[5]
        if directory != 0xFFFFFFFF and directory > MAX_MEMBERS * 512:
            raise fault(self.path, "the directory", f"has {directory} bytes")
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise fault(self.path, "the directory", f"cannot be read: {str(error)[:80]}") from None
        if len(found) > MAX_MEMBERS:
            raise fault(self.path, "the directory", f"lists {len(found)} members")
        return {info.filename.partition("/")[2] or info.filename: self._member(info) for info in found}

    def _member(self, info: zipfile.ZipInfo) -> Member:
        what = f"member {info.filename[:80]!r}"
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise fault(self.path, what, "is compressed or encrypted")
        start = info.header_offset
        if start < 0 or start + _LOCAL.size > self.size:
            raise fault(self.path, what, "begins behind the end of the file")
        signature, *_, name, extra = _LOCAL.unpack_from(self.map, start)
        offset = start + _LOCAL.size + name + extra
        if signature != b"PK\3\4" or info.file_size > self.size - offset:
            raise fault(self.path, what, f"of {info.file_size} bytes is not in the file")
        return Member(offset, info.file_size)

    def json(self, folder: str, suffix: str) -> Any:
        """What the one member of ``folder`` holds whose name ends in ``suffix``; None if there is none."""
        named = [name for name in self.members if name.startswith(folder) and name.endswith(suffix)]
        if len(named) > 1:
            what = f"{len(named)} programs are in it: {', '.join(name[:40] for name in named[:3])}"
            raise FerrumError("format-unsupported", what, self.path.name, "save one program to a file")
        if not named:
            return None
        member = self.members[named[0]]
        if member.nbytes > MAX_JSON:
            raise fault(self.path, named[0], f"has {member.nbytes} bytes")
        with memoryview(self.map) as whole, whole[member.offset : member.offset + member.nbytes] as data:
            if sum(occurrences(data, byte) for byte in (b"{", b"[", b",")) > MAX_PARTS:
                raise fault(self.path, named[0], f"has more than {MAX_PARTS} parts")
            try:
                return msgspec.json.decode(data)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise fault(self.path, named[0], f"is not JSON: {str(error)[:80]}") from None

    def program(self) -> Mapping[str, Any]:
        """The exported program as JSON. Raises FerrumError (format-unsupported) for what other versions of torch wrote."""
        found = self.json(MODELS, ".json")
        if isinstance(found, Mapping):
            return found
        if OLD in self.members or any(name.endswith(OLD) for name in self.members):
            what = "an old version of torch wrote this file, with pickled weights"
            raise FerrumError("format-unsupported", what, self.path.name, "load and save it with torch 2.9 or newer")
        raise FerrumError("format-unsupported", "no exported program is in it", self.path.name, "write it with torch.export.save")

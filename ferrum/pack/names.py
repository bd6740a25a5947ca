"""The validators for every name that comes out of a file: members, tensors, identifiers, paths."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ferrum.errors import FerrumError

MAX_MEMBER_NAME = 200
MAX_TENSOR_NAME = 1024
MAX_PATH = 1024

_PART = re.compile(r"[a-z0-9_][a-z0-9_.\-]*\Z")
_VISIBLE = re.compile(r"[\x21-\x7e]+\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def is_member_name(name: str) -> bool:
    """Lower-case ASCII parts joined by "/"; no part starts with a dot, so neither ".." nor an absolute path is possible.

    Lower case only: two members can then never meet in one file when a pack is unzipped on a case-folding disk.
    """
    return 0 < len(name) <= MAX_MEMBER_NAME and all(_PART.match(part) for part in name.split("/"))


def is_tensor_name(name: str) -> bool:
    """Visible ASCII without spaces; a tensor's name is never used as a path."""
    return 0 < len(name) <= MAX_TENSOR_NAME and _VISIBLE.match(name) is not None


def is_label(text: str, limit: int = 200) -> bool:
    """Printable text for people, possibly empty: no control character may reach a terminal or a header."""
    return len(text) <= limit and text.isprintable()


def is_sha256(text: str) -> bool:
    """64 lower-case hexadecimal digits."""
    return _SHA256.match(text) is not None


def check_relative_path(name: str, where: str) -> str:
    """``name`` if it is a plain relative path with "/" separators; FerrumError naming ``where`` otherwise."""
    parts = name.split("/")
    bad = (
        not 0 < len(name) <= MAX_PATH
        or not name.isprintable()
        or "\\" in name
        or ":" in name
        or any(part in ("", ".", "..") for part in parts)
    )
    if bad:
        raise FerrumError("bad-path", f"the name {name[:80]!r} is not a plain relative path", where, "get the file again")
    return name


def resolve_inside(root: Path, name: str, where: str) -> Path:
    """The regular file ``name`` below ``root``.

    Raises FerrumError when the name is not a plain relative path, leads out of ``root`` through a link, or is not a
    regular file (a FIFO would block the reader, a device has no end).
    """
    check_relative_path(name, where)
    base = os.path.realpath(root)
    full = os.path.realpath(Path(base) / name)
    if os.path.commonpath([base, full]) != base:
        raise FerrumError("bad-path", f"{name!r} leads out of its folder through a link", where, "get the file again")
    try:
        mode = Path(full).stat().st_mode
    except OSError as error:
        raise FerrumError("file-unreadable", f"{name!r} cannot be read: {error.strerror}", where, "get the file again") from None
    if not stat.S_ISREG(mode):
        raise FerrumError("bad-path", f"{name!r} is not a regular file", where, "get the file again")
    return Path(full)

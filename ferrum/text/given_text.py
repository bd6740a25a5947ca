"""A text that a user gives to be read by models."""

from __future__ import annotations

from pathlib import Path

from ferrum.errors import FerrumError

_LARGEST = 2**22  # bytes


def read_given(path: str) -> str:
    """Raises FerrumError for a file that is no text, or too large to be read in a day."""
    file, step = Path(path), "give a file of plain text in UTF-8"
    if not file.is_file():
        raise FerrumError("text-unreadable", "there is no such file", path, step)
    if file.stat().st_size > _LARGEST:
        what = f"{file.stat().st_size:,} bytes, more than {_LARGEST:,}"
        raise FerrumError("text-unreadable", what, path, "give a part of it")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FerrumError("text-unreadable", f"it cannot be read: {error}", path, step) from None
    if not text.strip():
        raise FerrumError("text-unreadable", "the file is empty", path, step)
    return text

"""What all workers of a test run share: made once, by whichever needs it first."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """``path``, a file or folder that ``make`` fills under another name; who comes meanwhile waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_name(f".part-{path.name}")  # keeps the suffix
            make(part)
            part.rename(path)
    return path

"""What the server says on stderr: faults of its own, without anything that came from a request."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

_FRAMES = 6


def log_failure(error: BaseException) -> None:
    """One line: the kind of ``error`` and where it arose. Its text may hold parts of a request, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    print(f"error: internal {type(error).__name__} · {places}", file=sys.stderr, flush=True)

"""The inside of a process that works within bounds: requests on stdin, answers on stdout.

Whatever a request does ends here: the address space may grow by ``headroom`` and each request may take ``seconds`` of processor
time, more for large ones. Beyond the second the system ends the process, and whoever asked sees the end of the stream.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferrum.errors import FerrumError
from ferrum.text.frames import parsed, read_frame, write_frame


@dataclass(frozen=True)
class Bounds:
    """``headroom``: bytes. ``bytes_per_byte``: more of a request's own bytes, whose parsed forms live at the same time.
    ``bytes_per_second``: what a request's own bytes add to ``seconds``. ``code``: of errors after which the process ends, since
    what they took may not have come back."""

    headroom: int
    bytes_per_byte: int
    seconds: float
    bytes_per_second: int
    code: str


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], bounds: Bounds) -> int:
    """Answer requests until stdin ends; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, whose end is seen on stdin
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    base = _address_space()
    while (frame := read_frame(requests)) is not None:
        _bound(base, len(frame), bounds)
        try:
            answered = answer(parsed(frame))
        except FerrumError as error:
            answered = {"error": [error.code, error.what, error.where, error.next_step]}
        except (MemoryError, RecursionError):
            return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(answers, answered)
        if answered.get("error", [""])[0] == bounds.code:
            return 1
    return 0


def _bound(base: int, size: int, bounds: Bounds) -> None:
    """Set the limits for a request of ``size`` bytes."""
    signal.setitimer(signal.ITIMER_PROF, bounds.seconds + size / bounds.bytes_per_second)
    if base:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (base + bounds.headroom + bounds.bytes_per_byte * size, hard))


def _address_space() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096
    except (OSError, ValueError, IndexError):
        return 0

"""The engine's process, started before anyone speaks with it: it loads its modules while its client still loads others.

Little is imported here, so that this can come first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import ferrum


@dataclass(frozen=True)
class EngineProcess:
    """A process that waits for its ``Start`` on the other end of ``sock``. Leaving a ``with`` block ends it for certain."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

    def close(self) -> None:
        """Kill what still runs; safe to call twice."""
        self.sock.close()
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def spawn() -> EngineProcess:
    """Start a process. ``-P`` keeps the working folder off its import path; ferrum itself is found by its folder."""
    root = str(Path(ferrum.__file__).parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ferrum.engine_process.main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C is ours to handle: it would hit a process that still loads its modules
                # OpenBLAS's threads spin where ours work, and the engine multiplies nothing with numpy
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
    except BaseException:
        ours.close()
        raise
    return EngineProcess(process, ours)

"""A process that does one kind of work within bounds, asked one request at a time, and started again after it broke them."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ferrum.errors import FerrumError
from ferrum.text.frames import parsed, read_frame, write_frame

ANSWER_SECONDS = 60.0  # processor time is bounded far below; this is for a machine that gives none
TEMPLATES = "ferrum.text.template_worker"

_ready: dict[str, subprocess.Popen[bytes]] = {}


def make_ready(module: str) -> None:
    """Start a process that the next ``BoundedProcess`` of ``module`` takes, so that its Python starts while this one does
    other work. One that nobody takes ends with this process, which is the end of its input."""
    with contextlib.suppress(OSError):  # whoever needs it tries again, and says what is wrong
        if module not in _ready:
            _ready[module] = _spawn(module)


def _spawn(module: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", module], stdin=pipe, stdout=pipe, process_group=0)


class BoundedProcess:
    """Runs ``python -m module``, which calls ``bounded_worker.serve``. ``first``: its first request, said again to each new one.
    ``over``: what is raised when it breaks its bounds; an answer with the same code ends it too. Safe to use from threads."""

    def __init__(self, module: str, first: Mapping[str, Any], over: FerrumError) -> None:
        self._module = module
        self._first = dict(first)
        self._over = over
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """End the process if there is one and start another; its answer to ``first``. Raises FerrumError."""
        with self._lock:
            return self._start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer. Blocks; starts the process when none runs. Raises FerrumError: what the worker says, and ``over``."""
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            return self._ask(request)

    def close(self) -> None:
        """End the process; safe to call twice. A later ``ask`` starts another."""
        with self._lock:
            self._end()

    def __enter__(self) -> BoundedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> dict[str, Any]:
        self._end()
        self._child = _ready.pop(self._module, None)
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = _spawn(self._module)
        try:
            return self._ask(self._first)
        except FerrumError:
            self._end()  # it does not know what every other request is about
            raise

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        frame = None
        with contextlib.suppress(BrokenPipeError):
            write_frame(child.stdin, request)
            answered = select.poll()  # not select, which knows the first 1,024 descriptors only
            answered.register(child.stdout, select.POLLIN)
            if answered.poll(ANSWER_SECONDS * 1000):
                frame = read_frame(child.stdout)
        if frame is None:
            self._end()
            raise _again(self._over)
        answer: dict[str, Any] = parsed(frame)
        if "error" in answer:
            code, what, where, next_step = answer["error"]
            if code == self._over.code:
                self._end()  # the worker is about to end itself, and may still look alive to the next request
            raise FerrumError(code, what, where, next_step)
        return answer

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _again(error: FerrumError) -> FerrumError:
    """The same error anew: a raised one keeps the frames that it passed."""
    return FerrumError(error.code, error.what, error.where, error.next_step)

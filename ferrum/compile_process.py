"""The compiler in a process of its own, so that torch's memory is gone when a server or a program goes on.

``python -m ferrum.compile_process`` reads one JSON object of ``CompileOptions`` from stdin and writes JSON lines:
``{"stage", "done", "total"}`` while it runs, then ``{"path"}`` or ``{"error"}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ferrum.errors import EXIT_INTERRUPTED, FerrumError

_PATHS = ("output", "dump_dir")
END_SECONDS = 10.0


def compile_apart(options: dict[str, Any], on_stage: Callable[[str, int, int], None] | None = None) -> Path:
    """Compile in a child process; ``options`` are fields of ``CompileOptions``. Raises the compiler's FerrumError."""
    command = [sys.executable, "-m", "ferrum.compile_process"]
    pipe = subprocess.PIPE
    # In a group of its own a terminal's Ctrl-C reaches only us, and what we send reaches the C compilers below it too.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8", process_group=0) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(options, default=str))
                child.stdin.close()
            for line in child.stdout:
                message = json.loads(line)
                if "path" in message:
                    return Path(message["path"])
                if "error" in message:
                    raise FerrumError(**message["error"])
                if on_stage is not None:
                    on_stage(message["stage"], message["done"], message["total"])
        finally:
            _end(child)
    what = f"the compiler ended unexpectedly (status {child.returncode})"
    raise FerrumError("compiler-died", what, str(options.get("name", "")), "check that memory and disk suffice, then repeat")


def has_tokenizer(model: Path) -> bool:
    """Whether a folder or file brings one. Raises FerrumError for a file's that is not known."""
    from ferrum.graphs.model_files import open_files

    return open_files(model).read("tokenizer.json") is not None


def check_config(folder: Path, pooling: str = "") -> None:
    """Raises FerrumError when the configuration in a folder or file is not one that the compiler knows. Loads no torch."""
    from ferrum.graphs.models.registry import find_config

    find_config(folder, pooling)


def _end(child: subprocess.Popen[str]) -> None:
    """Wait for a child that is done; one that is not, because we were interrupted, is ended."""
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        if sys.exc_info()[0] is not None:
            _signal(child, signal.SIGTERM)
        child.wait(END_SECONDS)
        return
    _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def main() -> int:
    """The child's side. A SIGTERM ends it as Ctrl-C does, with nothing half-written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from ferrum.codegen.driver import compile_model
    from ferrum.codegen.options import CompileOptions

    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may get between the answers

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    fields = json.loads(sys.stdin.read())
    fields |= {name: Path(fields[name]) for name in _PATHS if fields.get(name)}
    try:
        path = compile_model(CompileOptions(**fields), lambda stage, done, total: say(_stage(stage, done, total)))
    except FerrumError as error:
        say({"error": {"code": error.code, "what": error.what, "where": error.where, "next_step": error.next_step}})
        return 1
    say({"path": str(path)})
    return 0


def _stage(stage: str, done: int, total: int) -> dict[str, Any]:
    return {"stage": stage, "done": done, "total": total}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(EXIT_INTERRUPTED)

"""Programs: run to the end, kept running as servers, their memory, and a busy core beside them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.peers.record import Failure

Command = Sequence[str | Path]


def installed() -> dict[str, str]:
    """The environment, but Python keeps its bytecode, as it does where a package was installed with pip."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def run(command: Command, timeout: float = 1800, **environment: str) -> str:
    """Standard output. Raises Failure with the last lines of standard error."""
    try:
        done = subprocess.run(
            [str(c) for c in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=installed() | environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(str(error)) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise Failure(f"{Path(str(command[0])).name} ended with {done.returncode}: {' '.join(lines[-2:])[-300:]}")
    return done.stdout.decode(errors="replace")  # llama-quantize cuts characters in two


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def started(command: Command, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, ended with all its children."""
    with log.open("wb") as file:
        process = subprocess.Popen([str(c) for c in command], stdout=file, stderr=file, env=installed(), start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Failure(f"the server ended with {process.returncode}")
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.005)
    raise Failure(f"no answer from {url}")


def process_tree(root: int) -> list[int]:
    """``root`` and everything below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(folder.name))
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


def memory(root: int) -> dict[str, int]:
    """Bytes of a process tree: proportional set size, and the part of it that no file backs."""
    total = {"pss": 0, "anonymous": 0}
    for pid in process_tree(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, *values = line.split()
                if key == "Pss:":
                    total["pss"] += int(values[0]) * 1024
                elif key == "Pss_Anon:":
                    total["anonymous"] += int(values[0]) * 1024
    return total


@contextlib.contextmanager
def memory_peak(root: int, every: float = 0.25) -> Iterator[dict[str, int]]:
    """The largest figures seen while the block runs."""
    peak = {"pss": 0, "anonymous": 0}
    stop = threading.Event()

    def look() -> None:
        for key, value in memory(root).items():
            peak[key] = max(peak[key], value)

    def watch() -> None:
        while not stop.wait(every):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
        look()
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def busy_core() -> Iterator[int]:
    """A loop that never ends on the last of our cores."""
    core = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.2)
        yield core
    finally:
        process.kill()
        process.wait()


def warm(path: Path) -> None:
    """Read a file, so that it is in the file cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass

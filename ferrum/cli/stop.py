"""``ferrum stop``: end the running server by the record that it left under ``FERRUM_HOME/run``."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ferrum import env
from ferrum.cli.options import positive
from ferrum.cli.output import print_json
from ferrum.errors import FerrumError

_MAX_RECORD_BYTES = 4096


@dataclass(frozen=True)
class Server:
    """A running server. ``started``: ticks since boot at which its process started, so that a reused pid is no mistake."""

    pid: int
    started: int
    host: str
    port: int
    socket: str = ""

    def __str__(self) -> str:
        return self.socket or f"port {self.port}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--port", type=positive, default=None, help="the server on this port (default: every one)")
    parser.add_argument("--socket", default="", metavar="PATH", help="the server on this unix socket")
    parser.add_argument("--wait", type=positive, default=60, metavar="SECONDS", help="how long to wait for its end (default 60)")


def run(args: argparse.Namespace) -> int:
    found = running()
    servers = [s for s in found if _is_meant(s, args.port, args.socket)]
    for server in servers:
        os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + args.wait
    while alive := [s for s in servers if is_alive(s)]:
        if time.monotonic() > deadline:
            step = f"kill -9 {alive[0].pid} ends it at once"
            raise FerrumError("stop-timeout", f"the server did not end within {args.wait} s", str(alive[0]), step)
        time.sleep(0.02)
    if args.json:
        print_json({"stopped": [asdict(s) for s in servers]})
    elif servers:
        print("\n".join(f"stopped the server on {s} (pid {s.pid})" for s in servers))
    elif found:
        print(f"no server is running on {args.socket or f'port {args.port}'}; there is one on {' and on '.join(map(str, found))}")
    else:
        print("no server is running")
    return 0


def _is_meant(server: Server, port: int | None, socket: str) -> bool:
    if socket:
        return server.socket == os.path.abspath(socket)
    return port is None or (port == server.port and not server.socket)


def pid_file(port: int, socket: str = "") -> Path:
    """Where a server that was asked to use this port or this socket leaves its record."""
    if socket:
        return env.run_dir() / f"serve-{hashlib.sha256(os.path.abspath(socket).encode()).hexdigest()[:16]}.pid"
    name = f"serve-{port}" if port else f"serve-any-{os.getpid()}"
    return env.run_dir() / f"{name}.pid"


def running() -> list[Server]:
    """Servers that are alive; records of dead ones are removed."""
    found = []
    for path in sorted(env.run_dir().glob("serve-*.pid")):
        server = read_record(path)
        if server is not None and is_alive(server):
            found.append(server)
        else:
            path.unlink(missing_ok=True)
    return found


def read_record(path: Path) -> Server | None:
    """The record in a file; None when it is none."""
    try:
        with path.open("rb") as stream:
            record = json.loads(stream.read(_MAX_RECORD_BYTES))
        server = Server(**record)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers = (server.pid, server.started, server.port)
    sound = (
        all(isinstance(n, int) for n in numbers)
        and 1 < server.pid < 1 << 31
        and isinstance(server.host, str)
        and isinstance(server.socket, str)
    )
    return server if sound else None


def is_alive(server: Server) -> bool:
    """Whether the very process of the record runs: not a zombie, and not a later one with the same number."""
    try:
        os.kill(server.pid, 0)
    except OSError:
        return False  # gone, or another user's process has the number now
    return start_time(server.pid) == server.started


def start_time(pid: int) -> int:
    """Ticks since boot at which a process started; -1 for a zombie, 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if fields[0] == "Z" else int(fields[19])

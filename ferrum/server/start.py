"""The start of a server, in the order that takes the least time.

The port is bound first (a busy one costs nothing), then the engine's process starts, and only then the modules of the server
are imported here: there are two cores' worth of loading to do. So little may be imported above.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ferrum.engine_process.spawn import spawn
from ferrum.errors import FerrumError
from ferrum.server.options import BACKLOG, ServeOptions


def serve(pack_path: Path | str, options: ServeOptions | None = None) -> int:
    """Serve the pack until SIGTERM or SIGINT; the exit status. Raises FerrumError when it cannot start."""
    options = options or ServeOptions()
    with bind(options.host, options.port) as sock, spawn() as engine:
        from ferrum.server.lifecycle import run_server  # see above

        return run_server(Path(pack_path), options, sock, engine)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises FerrumError for a busy port or an address that is not this machine's."""
    where = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda f: f[0] != socket.AF_INET)  # localhost may also be ::1
    except (OSError, UnicodeError):
        raise FerrumError("bad-address", "the host name is not known", where, "check --host") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise FerrumError("port-denied", "this user may not listen on the port", where, "use --port 1024 or higher") from None
        step = "stop the other server, or use another --port"
        raise FerrumError("port-busy", f"cannot listen: {os.strerror(error.errno or 0)}", where, step) from None
    return sock

"""Sockets that a server listens on, and TLS over them."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.errors import FerrumError
from ferrum.server.options import BACKLOG, ServeOptions

if TYPE_CHECKING:
    import ssl


def listen(options: ServeOptions) -> socket.socket:
    """Raises FerrumError."""
    return bind_path(options.socket) if options.socket else bind(options.host, options.port)


def bind_path(path: str) -> socket.socket:
    """A listening unix socket that only this user can reach. Raises FerrumError; a socket that nobody listens on is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "another server listens there" if Path(path).is_socket() else "something else is there"
        raise FerrumError(
            "socket-busy", f"cannot listen: {reason}", path, "stop the other server, or use another --socket"
        ) from None
    return sock


def _is_left_over(path: str) -> bool:
    """Whether a server that is gone left this socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def tls_context(options: ServeOptions) -> ssl.SSLContext:
    """Raises FerrumError for a certificate or a key that cannot be used."""
    import ssl  # few servers speak TLS themselves

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    assert options.tls_cert is not None and options.tls_key is not None
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key, password=_no_password)
    except OSError as error:  # ssl.SSLError is one
        where = f"{options.tls_cert}, {options.tls_key}"
        reason = (
            error.strerror if error.filename or not isinstance(error, ssl.SSLError) else "not a certificate and its key in PEM"
        )
        raise FerrumError("bad-tls", f"cannot be used: {reason}", where, "give a certificate chain and its private key") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    raise FerrumError("bad-tls", "the private key has a password", "--tls-key", "give one without")


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

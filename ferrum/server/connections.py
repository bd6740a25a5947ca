"""Connections: how many there may be, and how long one may take to say what it wants."""

from __future__ import annotations

import time
from typing import Any

from sanic import Request
from sanic.http.constants import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from ferrum.server.errors import ApiError
from ferrum.server.origins import is_loopback

HEADER_SECONDS = 10.0  # from the first byte of a request, or from the connection, to the end of its headers
BODY_GRACE_SECONDS = 20.0  # for a body to begin
BODY_BYTES_PER_SECOND = 1024  # the least rate of a body after that
SETTLED_SECONDS = 1.0  # a younger connection is not closed for another's sake
_ALT_SVC = b"alt-svc: \r\n"  # Sanic writes it, empty, into every answer


_Base: Any = HttpProtocol


class LimitedProtocol(_Base):  # type: ignore[misc]
    """Sanic's protocol with limits; ``limited_protocol`` sets them."""

    max_connections = 1
    max_per_address = 0
    __slots__ = ("_refused", "_address", "_began", "_arrived", "_watch")

    def connection_made(self, transport: Any) -> None:
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""
        self._refused = self._has_too_many() or (len(self.connections) >= self.max_connections and not self._make_room())
        self._watch: Any = None
        if self._refused:
            transport.write(_FULL)
            transport.close()
            return
        self._began, self._arrived = time.monotonic(), 0
        super().connection_made(transport)
        self._look_again()

    def _has_too_many(self) -> bool:
        limit = self.max_per_address
        if not limit and self._address and not is_loopback(self._address):
            limit = self.max_connections // 2
        return bool(limit) and sum(1 for c in self.connections if c._address == self._address) >= limit

    def _make_room(self) -> bool:
        settled = time.monotonic() - SETTLED_SECONDS
        waiting = [c for c in self.connections if c._began < settled and not c._is_served()]
        if waiting:
            min(waiting, key=lambda c: c._began).transport.abort()
        return bool(waiting)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        http = self.http
        if http is None or (http.stage is Stage.IDLE and not self.recv_buffer):
            self._began, self._arrived = time.monotonic(), 0
        self._arrived += len(data)
        super().data_received(data)

    def _look_again(self) -> None:
        self._watch = self.loop.call_later(HEADER_SECONDS / 4, self._check_pace)

    def _check_pace(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._is_late():
            self.transport.write(_LATE)
            self.transport.close()
        else:
            self._look_again()

    def _is_served(self) -> bool:
        http = self.http
        if http is None:
            return False
        return http.stage is Stage.RESPONSE or (http.stage is Stage.HANDLER and is_received(http.request))

    def _is_late(self) -> bool:
        http = self.http
        if http is None or self._is_served():
            return False
        waited = time.monotonic() - self._began
        if http.stage is Stage.HANDLER or http.request_body:
            return waited > BODY_GRACE_SECONDS + self._arrived / BODY_BYTES_PER_SECOND
        between = http.stage is Stage.IDLE and self._arrived > 0  # Sanic ends it when it stays idle for long
        return not between and waited > HEADER_SECONDS

    async def send(self, data: bytes) -> None:
        at = data.find(_ALT_SVC, 0, 8192) if data.startswith(b"HTTP/1.1 ") else -1
        await super().send(data if at < 0 else data[:at] + data[at + len(_ALT_SVC) :])

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if not self._refused:
            super().connection_lost(exc)


def limited_protocol(max_connections: int, max_per_address: int = 0) -> type[HttpProtocol]:
    """Sanic's protocol with limits.

    Beyond ``max_connections`` the oldest connection that is not being served makes room; when all are, the new one is refused.
    ``max_per_address`` 0: half of them for another machine, no limit for this one, whose clients and proxies share an address.
    """
    limits = {"__slots__": (), "max_connections": max_connections, "max_per_address": max_per_address}
    kind: Any = type(LimitedProtocol)
    made: type[HttpProtocol] = kind("LimitedProtocol", (LimitedProtocol,), limits)
    return made


async def note_received(request: Request, **_: Any) -> None:
    """All of ``request`` is here, so its connection is no longer waited for."""
    request.ctx.received = True


def is_received(request: Request | None) -> bool:
    return request is not None and getattr(request.ctx, "received", False)


def _raw(status: str, error: ApiError, extra: bytes = b"") -> bytes:
    body = error.response().body or b""
    head = b"HTTP/1.1 %b\r\n%bconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status.encode(), extra, len(body)) + body


_FULL = _raw("503 Service Unavailable", ApiError(503, "too many connections", code="too_many_connections"), b"retry-after: 1\r\n")
_LATE = _raw("408 Request Timeout", ApiError(408, "the request took too long to arrive", code="request_timeout"))

"""A response that stays open: events one after another, signs of life, and an end that a client can tell from a cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.wire import encode

SILENCE_SECONDS = 15.0  # a sign of life goes out after this long without an event, so that proxies keep the connection
STALL_SECONDS = 60.0  # a client that takes nothing for this long is gone

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True)
class Event:
    """``data`` is written as JSON, bytes as they are. ``name``: for dialects that name their events."""

    data: Any
    name: str = ""


class Framing(Protocol):
    """How a dialect writes events."""

    content_type: str
    alive: bytes  # what goes out in silence

    def frame(self, event: Event) -> bytes: ...


class ServerSentEvents:
    """As browsers read them (WHATWG HTML, 9.2). Comments are ignored by clients."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, alive: bytes = b": waiting\n\n") -> None:
        self.alive = alive

    def frame(self, event: Event) -> bytes:
        data = event.data if isinstance(event.data, bytes) else encode(event.data)
        return b"event: %b\ndata: %b\n\n" % (event.name.encode(), data) if event.name else b"data: %b\n\n" % data


class JsonLines:
    """One JSON object a line. There is no comment in this form, so silence stays silence."""

    content_type = "application/x-ndjson"
    alive = b""

    def frame(self, event: Event) -> bytes:
        return encode(event.data) + b"\n"


class EventStream:
    """Events of one response. Writing waits for a slow client, but not longer than ``STALL_SECONDS``."""

    def __init__(self, request: Request, framing: Framing) -> None:
        self._request = request
        self._framing = framing
        self._response: HTTPResponse | None = None
        self._written = time.monotonic()

    @property
    def patience(self) -> float:
        """Seconds until a sign of life is due."""
        return max(0.0, self._written + SILENCE_SECONDS - time.monotonic())

    async def send(self, events: Sequence[Event]) -> None:
        """All of ``events`` in one write."""
        if events:
            await self._write(b"".join(map(self._framing.frame, events)))

    async def keep_alive(self) -> None:
        """A sign of life, if one is due."""
        if not self.patience:
            await self._write(self._framing.alive)

    async def _write(self, data: bytes) -> None:
        if self._response is None:
            self._response = await self._request.respond(content_type=self._framing.content_type, headers=_HEADERS)
        self._written = time.monotonic()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._response.send(data)
        except TimeoutError:
            transport: Any = self._request.transport
            if transport is not None:
                transport.abort()
            raise asyncio.CancelledError from None

"""Server-sent events: one response that stays open, with signs of life and an end that a client can tell from a cut."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.errors import ApiError
from ferrum.server.wire import encode

SILENCE_SECONDS = 15.0  # a comment goes out after this long without an event, so that proxies keep the connection
STALL_SECONDS = 60.0  # a client that takes nothing for this long is gone

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream:
    """Events of one response. Writing waits for a slow client, but not longer than ``STALL_SECONDS``."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._response: HTTPResponse | None = None
        self._written = time.monotonic()

    @property
    def patience(self) -> float:
        """Seconds until a sign of life is due."""
        return max(0.0, self._written + SILENCE_SECONDS - time.monotonic())

    async def send(self, events: list[object]) -> None:
        """All of ``events`` in one write."""
        await self._write(b"".join(b"data: %b\n\n" % encode(e) for e in events))

    async def keep_alive(self) -> None:
        """A comment, which clients ignore, if one is due."""
        if not self.patience:
            await self._write(b": waiting\n\n")

    async def error(self, error: ApiError) -> None:
        """The last thing in a stream that failed."""
        await self._write(b"event: error\ndata: %b\n\n" % encode(error.body()))

    async def done(self) -> None:
        await self._write(b"data: [DONE]\n\n")

    async def _write(self, data: bytes) -> None:
        if self._response is None:
            self._response = await self._request.respond(content_type="text/event-stream; charset=utf-8", headers=_HEADERS)
        self._written = time.monotonic()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._response.send(data)
        except TimeoutError:
            transport: Any = self._request.transport
            if transport is not None:
                transport.abort()
            raise asyncio.CancelledError from None

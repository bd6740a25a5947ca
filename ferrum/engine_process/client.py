"""The asyncio side of an engine in its own process.

``EngineClient.start`` speaks with ``python -m ferrum.engine_process.main`` over a socket pair and waits until the pack is loaded.
Everything runs on the event loop that called ``start``. One frame per engine step comes in; each stream that got tokens in it
is woken once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import msgspec

from ferrum.devices.options import DeviceOptions
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import EngineInfo, EngineStats, TokenEvent, queue_full
from ferrum.engine_process.messages import (
    Abort,
    Embed,
    Embedded,
    Events,
    Failed,
    FrameReader,
    FromEngine,
    Generate,
    GetStats,
    Ready,
    Refused,
    Shutdown,
    Start,
    Stats,
    ToEngine,
    decode_from_engine,
    encode,
    to_error,
)
from ferrum.engine_process.spawn import EngineProcess, spawn
from ferrum.errors import FerrumError

EXIT_SECONDS = 2.0


class _Pending:
    """What the client keeps of a running request."""

    __slots__ = ("error", "events", "open", "waiter")

    def __init__(self, choices: int) -> None:
        self.events: deque[TokenEvent] = deque()
        self.open = set(range(choices))
        self.error: FerrumError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Generation:
    """The tokens of one request as an async iterator; ends after the last event of the last choice.

    Leaving it early frees the request: ``abort``, ``aclose``, the end of an ``async with``, or the loss of the last
    reference. A cancelled wait does not, so that ``asyncio.wait_for`` can be used to look at the clock.
    """

    def __init__(self, client: EngineClient, request_id: str, pending: _Pending) -> None:
        self.request_id = request_id
        self._client = client
        self._pending = pending

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> TokenEvent:
        """The next event. Raises FerrumError when the engine refuses the request or ends."""
        await self._ready()
        return self._pending.events.popleft()

    async def batch(self) -> list[TokenEvent]:
        """All events that are there, at least one; an empty list at the end. Raises FerrumError as iteration does."""
        try:
            await self._ready()
        except StopAsyncIteration:
            return []
        events = list(self._pending.events)
        self._pending.events.clear()
        return events

    def abort(self, index: int | None = None) -> None:
        """End one choice or all (e.g. at a stop string): no event of it comes any more and its memory is freed."""
        self._client._cut(self.request_id, self._pending, index)

    async def aclose(self) -> None:
        self.abort()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    def __del__(self) -> None:
        if self._pending.open:
            self._client._abandon(self.request_id, self._pending)

    async def _ready(self) -> None:
        pending = self._pending
        while not pending.events:
            if pending.error is not None:
                raise pending.error
            if not pending.open:
                raise StopAsyncIteration
            pending.waiter = asyncio.get_running_loop().create_future()
            try:
                await pending.waiter
            finally:
                pending.waiter = None


class EngineClient(asyncio.Protocol):
    """One engine process. Create it with ``start``; ``info`` says what was loaded."""

    info: EngineInfo

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.draining = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameReader()
        self._ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._requests: dict[str, _Pending] = {}
        self._rows: dict[str, asyncio.Future[bytes]] = {}
        self._calls: dict[int, asyncio.Future[EngineStats]] = {}
        self._error: FerrumError | None = None
        self._closing = False
        self._idle: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._death: asyncio.Task[None] | None = None
        self._count = 0
        self._num_refused = 0

    @classmethod
    async def start(
        cls,
        pack: str | os.PathLike[str],
        spawned: EngineProcess | None = None,
        *,
        device: str = "auto",
        trust: bool = False,
        device_options: DeviceOptions | None = None,
        engine_options: EngineOptions | None = None,
    ) -> EngineClient:
        """Have ``spawned``, or a process spawned now, load ``pack`` and wait until it is ready. It is the client's from here on.

        Raises the FerrumError that loading raised.
        """
        engine = spawned or spawn()
        try:
            engine.sock.setblocking(False)
            loop = asyncio.get_running_loop()
            _, client = await loop.create_unix_connection(lambda: cls(engine.process), sock=engine.sock)
        except BaseException:
            engine.close()
            raise
        start = Start(
            str(Path(pack).absolute()), device, trust, device_options or DeviceOptions(), engine_options or EngineOptions()
        )
        try:
            client._send(start)
            client.info = await client._ready
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def alive(self) -> bool:
        return self._error is None and not self._closing

    @property
    def num_active(self) -> int:
        """Requests that are queued or running."""
        return len(self._requests) + len(self._rows)

    @property
    def _unfinished(self) -> int:
        """Choices that the engine may still have; never less than it has."""
        return len(self._rows) + sum(len(pending.open) for pending in self._requests.values())

    def generate(self, prompt: Sequence[int], params: SamplingParams, *, salt: str = "") -> Generation:
        """Send a request; its refusal is raised by the first wait for an event.

        Raises FerrumError at once: "queue-full" (known here, so that nobody waits for a step to hear it),
        "engine-draining", "engine-closed" or what ended the engine.
        """
        request_id = self._admitted(params.n)
        self._send(Generate(request_id, list(prompt), params, salt))
        pending = self._requests[request_id] = _Pending(params.n)
        return Generation(self, request_id, pending)

    async def embed(self, prompt: Sequence[int], dimensions: int = 0) -> bytes:
        """The embedding of a prompt, float32 in little-endian bytes; ``dimensions`` 0: all of it. Raises FerrumError as
        ``generate``, and the engine's refusal."""
        request_id = self._admitted(1)
        self._send(Embed(request_id, list(prompt), dimensions))
        row: asyncio.Future[bytes] = self._loop.create_future()
        self._rows[request_id] = row
        try:
            return await row
        finally:
            del self._rows[request_id]
            if row.cancelled() and self.alive:
                self._send(Abort(request_id))
            self._rest()

    def _admitted(self, choices: int) -> str:
        """An id for a request, never used twice: events of one that was ended may still be under way. Raises FerrumError."""
        self._check_open()
        if self.draining:
            raise FerrumError("engine-draining", "the server is shutting down", "", "try again later")
        if self._unfinished + choices > self.info.max_queue + self.info.max_num_seqs:
            self._num_refused += 1
            raise queue_full(self._unfinished)
        self._count += 1
        return f"r{self._count}"

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End one choice or all of a request; its iterator ends without further events. Unknown ids are ignored."""
        pending = self._requests.get(request_id)
        if pending is not None:
            self._cut(request_id, pending, index)

    async def stats(self) -> EngineStats:
        """Raises FerrumError when the engine is gone."""
        self._check_open()
        self._count += 1
        call: asyncio.Future[EngineStats] = self._loop.create_future()
        self._calls[self._count] = call
        self._send(GetStats(self._count))
        stats = await call
        return msgspec.structs.replace(stats, num_rejected=stats.num_rejected + self._num_refused)

    async def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the running ones; False when some are left after ``timeout`` seconds."""
        self.draining = True
        if self.num_active:
            if self._idle is None or self._idle.done():
                self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout)
        return not self.num_active

    async def close(self) -> None:
        """End the engine and its process; running requests fail with "engine-closed". Safe to call twice."""
        assert self._transport is not None
        if not self._closing:
            self._closing = True
            if not self._ready.done():
                self._transport.close()  # still loading: it reads no messages, but it sees the end of the socket
            elif self._error is None:
                self._send(Shutdown())
            self._fail(FerrumError("engine-closed", "the engine was closed"))
        await self._reap()
        self._transport.close()
        await self.wait_ended()

    async def wait_ended(self) -> None:
        """Wait until the engine is gone, for whatever reason."""
        await asyncio.shield(self._ended)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                self._dispatch(decode_from_engine(payload))
        except FerrumError as error:
            self._fail(error)
            self.process.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set_result(None)
        if self._error is None:
            self._death = self._loop.create_task(self._report_death())

    async def _report_death(self) -> None:
        await self._reap()
        status = self.process.returncode
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._fail(FerrumError("engine-died", f"the engine process ended unexpectedly ({how})", "", "restart the server"))

    async def _reap(self) -> None:
        """Wait for the process; kill it when it does not end by itself."""
        try:
            await self._loop.run_in_executor(None, self.process.wait, EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await self._loop.run_in_executor(None, self.process.wait)

    def _dispatch(self, message: FromEngine) -> None:
        if isinstance(message, Events):
            self._deliver(message.events)
        elif isinstance(message, Embedded):
            for request_id, values in message.rows:
                if (row := self._rows.get(request_id)) is not None and not row.done():
                    row.set_result(values)
        elif isinstance(message, Refused):
            pending, row = self._requests.get(message.request_id), self._rows.get(message.request_id)
            if row is not None and not row.done():
                row.set_exception(to_error(message))
            if pending is not None:
                pending.error = to_error(message)
                pending.open.clear()
                self._finish(message.request_id, pending)
        elif isinstance(message, Stats):
            call = self._calls.pop(message.call, None)
            if call is not None and not call.done():
                call.set_result(message.stats)
        elif isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(message.info)
        elif isinstance(message, Failed):
            self._fail(to_error(message))

    def _deliver(self, events: list[TokenEvent]) -> None:
        touched: dict[str, _Pending] = {}
        for event in events:
            pending = self._requests.get(event.request_id)
            if pending is None or event.index not in pending.open:
                continue  # ended here while the event was under way
            pending.events.append(event)
            touched[event.request_id] = pending
            if event.finish_reason:
                pending.open.discard(event.index)
        for request_id, pending in touched.items():
            if not pending.open:
                self._finish(request_id, pending)
            else:
                pending.wake()

    def _cut(self, request_id: str, pending: _Pending, index: int | None) -> None:
        """A consumer ends a choice (None: all): drop what it has not read and tell the engine."""
        ended = pending.open & ({index} if index is not None else pending.open)
        pending.events = deque(e for e in pending.events if index is not None and e.index != index)
        pending.open -= ended
        if ended and request_id in self._requests:
            if self.alive:
                self._send(Abort(request_id, -1 if index is None else index))
            if not pending.open:
                self._finish(request_id, pending)
            pending.wake()

    def _abandon(self, request_id: str, pending: _Pending) -> None:
        """Nobody holds the iterator any more; the garbage collector says so, perhaps on another thread."""

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cut, request_id, pending, None)

    def _finish(self, request_id: str, pending: _Pending) -> None:
        del self._requests[request_id]
        pending.wake()
        self._rest()

    def _rest(self) -> None:
        """Tell who drains when nothing runs any more."""
        if not self.num_active and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _fail(self, error: FerrumError) -> None:
        """The engine is gone: everybody who waits gets ``error``."""
        if self._error is not None:
            return
        self._error = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # marks it as seen, should nobody wait for it
        for request_id, pending in list(self._requests.items()):
            pending.error = error
            pending.open.clear()
            self._finish(request_id, pending)
        waiting: list[asyncio.Future[Any]] = [*self._calls.values(), *self._rows.values()]
        for call in waiting:
            if not call.done():
                call.set_exception(error)
        self._calls.clear()

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self, message: ToEngine) -> None:
        assert self._transport is not None
        self._transport.write(encode(message))

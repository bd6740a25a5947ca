"""What the generating routes share: reading the body, running the job, whole and streamed answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.answers import Completion, Usage, make_usage
from ferrum.server.choice import Delta
from ferrum.server.errors import ApiError, from_ferrum, internal, unsupported
from ferrum.server.guard import note_error
from ferrum.server.job import Job
from ferrum.server.log import RequestRecord
from ferrum.server.prepare import Prepared
from ferrum.server.sse import SILENCE_SECONDS, EventStream
from ferrum.server.state import ServerState
from ferrum.server.wire import BadRequest, check_structure, decode, encode

SESSION_HEADER = "x-ferrum-session"
# What curl and forms say unasked is taken for JSON too: that a page may send these without asking first is no matter, since its
# origin is looked at.
CONTENT_TYPES = frozenset({"", "application/json", "text/json", "text/plain", "application/x-www-form-urlencoded"})
INLINE_BYTES = 32 * 1024  # larger bodies are looked at before they are decoded
T = TypeVar("T", bound="Checked")


class Checked(Protocol):
    def check(self) -> None: ...


class Writer(Protocol):
    """Turns deltas into the choices of one route's answers."""

    object: str
    chunk_object: str

    def opening(self) -> list[Any]:
        """Choices of the first chunks, before any text."""

    def chunk(self, delta: Delta) -> list[Any]:
        """Choices of the chunks that ``delta`` makes."""

    def add(self, delta: Delta) -> None:
        """Keep ``delta`` for a whole answer."""

    def whole(self) -> list[Any]:
        """The choices of a whole answer."""


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.ctx.state
    return state


async def read(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body, checked. Raises ApiError."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "compressed bodies are not supported", code="unsupported_encoding")
    if SESSION_HEADER in request.headers:
        raise unsupported(SESSION_HEADER, "sessions are not supported")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in CONTENT_TYPES:
        raise ApiError(415, "the content type must be application/json", code="unsupported_content_type")
    try:
        if len(request.body) > INLINE_BYTES:
            await state_of(request).off_loop(len(request.body), check_structure, request.body)
        body = decode(request.body, decoder)
        body.check()
    except BadRequest as error:
        raise ApiError(400, error.message, param=error.param, code=error.code) from None
    # Sanic stops reading when a body fills its buffer; without reading, the end of the connection would not be seen.
    transport: Any = request.transport
    if transport is not None:
        transport.resume_reading()
    return body


def answer(value: object, status: int = 200) -> HTTPResponse:
    return HTTPResponse(encode(value), status, content_type="application/json")


class Exchange:
    """One generating request from its preparation to its end."""

    def __init__(self, request: Request, kind: str, *, stream: bool, include_usage: bool) -> None:
        self.request = request
        self.state = state_of(request)
        self.stream = stream
        self.include_usage = include_usage
        self.record: RequestRecord = request.ctx.record
        self.id = f"{kind}-{self.record.id}"
        self.created = int(self.state.clock())

    async def run(
        self, prepare: Callable[[], Awaitable[Prepared]], make_writer: Callable[[Prepared], Writer], *, continues: bool
    ) -> HTTPResponse | None:
        """The answer; None when it was streamed. Raises ApiError before anything was sent."""
        state = self.state
        with state.admitted():
            prepared = await prepare()
            job = Job(
                state.backend,
                state.tokenizer,
                prepared.prompts,
                prepared.sampling,
                prepared.text,
                state.metrics,
                continues=continues,
            )
            self.record.work = job
            writer = make_writer(prepared)
            try:
                async with job:
                    if not self.stream:
                        return await self._whole(job, writer)
                    await self._streamed(job, writer, prepared)
                    return None
            except FerrumError as error:
                raise from_ferrum(error, prepared.param_names) from None

    async def _whole(self, job: Job, writer: Writer) -> HTTPResponse:
        while not job.done:
            for delta in await job.next(SILENCE_SECONDS):
                writer.add(delta)
        result = self._envelope(writer.object, writer.whole())
        result.usage = self._usage(job)
        return answer(result)

    async def _streamed(self, job: Job, writer: Writer, prepared: Prepared) -> None:
        deltas = await job.next(SILENCE_SECONDS)  # a refusal comes before the first token and gets a status of its own
        events = EventStream(self.request)
        try:
            await self._send(events, writer, writer.opening())
            while True:
                await self._send(events, writer, [c for d in deltas for c in writer.chunk(d)])
                if job.done:
                    break
                deltas = await job.next(events.patience)
                await events.keep_alive()
            if self.include_usage:
                last = self._envelope(writer.chunk_object, [])
                last.usage = self._usage(job)
                await events.send([last])
            await events.done()
        except FerrumError as error:
            await self._fail(events, from_ferrum(error, prepared.param_names))
        except Exception as error:
            self.state.log.failure(error)
            await self._fail(events, internal())

    async def _fail(self, events: EventStream, error: ApiError) -> None:
        note_error(self.request, error)
        await events.error(error)

    async def _send(self, events: EventStream, writer: Writer, choices: list[Any]) -> None:
        if choices:
            await events.send([self._chunk(writer, choice) for choice in choices])

    def _chunk(self, writer: Writer, choice: Any) -> Completion:
        chunk = self._envelope(writer.chunk_object, [choice])
        if self.include_usage:
            chunk.usage = None
        return chunk

    def _envelope(self, kind: str, choices: list[Any]) -> Completion:
        state = self.state
        return Completion(
            id=self.id,
            object=kind,
            created=self.created,
            model=state.model_name,
            system_fingerprint=state.fingerprint,
            choices=choices,
        )

    def _usage(self, job: Job) -> Usage:
        return make_usage(job.prompt_tokens, job.completion_tokens, job.cached_tokens)

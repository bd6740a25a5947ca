"""One generating request from its preparation to its end, whatever the dialect: whole and streamed answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sanic import Request
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.choice import Delta
from ferrum.server.errors import ApiError, from_ferrum, in_words_of, internal
from ferrum.server.guard import note_error, owner_of
from ferrum.server.job import Job
from ferrum.server.log import RequestRecord
from ferrum.server.meters import Meter
from ferrum.server.prepare import Prepared
from ferrum.server.sse import SILENCE_SECONDS, Event, EventStream, Framing
from ferrum.server.state import ServerState, state_of
from ferrum.server.wire import encode

INLINE_NUMBERS = 256  # tokens and log-probabilities of an answer that is encoded on the event loop


@dataclass(frozen=True)
class Counts:
    """Tokens of a request: of its prompts, of those found in the prefix cache, of its answer, and of the reasoning in that."""

    prompt: int
    cached: int
    completion: int
    reasoning: int = 0


class Writer(Protocol):
    """Turns deltas into the answers of one dialect. Either ``add`` and ``whole`` are called, or the others."""

    framing: Framing

    def opening(self, counts: Counts) -> Sequence[Event]:
        """The first events, before any text."""

    def chunk(self, delta: Delta) -> Sequence[Event]:
        """The events that ``delta`` makes."""

    def closing(self, counts: Counts) -> Sequence[Event]:
        """The last events."""

    def failed(self, error: ApiError) -> Sequence[Event]:
        """The last events of a stream that broke."""

    def add(self, delta: Delta) -> None:
        """Keep ``delta`` for a whole answer."""

    def whole(self, counts: Counts) -> object:
        """The answer, ready to be encoded. Runs in a thread when it is large."""


class Exchange:
    """``kind`` begins the answer's id. ``params``: names of the dialect for fields that errors name in OpenAI's words."""

    def __init__(self, request: Request, kind: str, *, stream: bool, params: Mapping[str, str] | None = None) -> None:
        self.request = request
        self.state: ServerState = state_of(request)
        self.stream = stream
        self.record: RequestRecord = request.ctx.record
        self.id = f"{kind}{self.record.id}"
        self.created = int(self.state.clock())
        self._params = params or {}

    async def run(
        self,
        prepare: Callable[[], Awaitable[Prepared]],
        make_writer: Callable[[Prepared], Writer],
        *,
        continues: bool = False,
    ) -> HTTPResponse | None:
        """The answer; None when it was streamed. Raises ApiError before anything was sent."""
        with in_words_of(self._params):
            return await self._run(prepare, make_writer, continues)

    async def _run(
        self, prepare: Callable[[], Awaitable[Prepared]], make_writer: Callable[[Prepared], Writer], continues: bool
    ) -> HTTPResponse | None:
        state = self.state
        if state.backend.info.embedding_width:
            what = "this model makes embeddings, at /v1/embeddings; it generates no text"
            raise ApiError(400, what, param="model", code="unsupported_by_model")
        meter: Meter | None = getattr(self.request.ctx, "meter", None)
        with state.admitted(meter):
            prepared = await prepare()
            job = Job(
                state.backend,
                state.tokenizer,
                prepared.prompts,
                prepared.sampling,
                prepared.text,
                state.metrics,
                continues=continues,
                salt=owner_of(self.request),
            )
            self.record.work = job
            writer = make_writer(prepared)
            try:
                async with job:
                    if not self.stream:
                        return await self._whole(job, writer, 1 + (prepared.sampling.logprobs or 0))
                    await self._streamed(job, writer, prepared)
                    return None
            except FerrumError as error:
                refused = from_ferrum(error, prepared.param_names)
                if refused.status == 429:
                    refused.retry_after = state.patience()
                raise refused from None
            finally:
                if meter is not None:
                    meter.tokens.spend(job.prompt_tokens + job.completion_tokens)

    async def _whole(self, job: Job, writer: Writer, numbers: int) -> HTTPResponse:
        while not job.done:
            for delta in await job.next(SILENCE_SECONDS):
                writer.add(delta)
        counts = counts_of(job)

        def work() -> bytes:
            return encode(writer.whole(counts))

        body = work() if counts.completion * numbers <= INLINE_NUMBERS else await self.state.in_thread(work)
        return HTTPResponse(body, content_type="application/json")

    async def _streamed(self, job: Job, writer: Writer, prepared: Prepared) -> None:
        deltas = await job.next(SILENCE_SECONDS)  # a refusal comes before the first token and gets a status of its own
        events = EventStream(self.request, writer.framing)
        try:
            await events.send(writer.opening(counts_of(job)))
            while True:
                await events.send([e for d in deltas for e in writer.chunk(d)])
                if job.done:
                    break
                deltas = await job.next(events.patience)
                await events.keep_alive()
            await events.send(writer.closing(counts_of(job)))
        except FerrumError as error:
            await self._fail(events, writer, from_ferrum(error, prepared.param_names))
        except Exception as error:
            self.state.log.failure(error)
            await self._fail(events, writer, internal())

    async def _fail(self, events: EventStream, writer: Writer, error: ApiError) -> None:
        note_error(self.request, error)
        await events.send(writer.failed(error))


def counts_of(job: Job) -> Counts:
    return Counts(job.prompt_tokens, job.cached_tokens, job.completion_tokens, job.reasoning_tokens)

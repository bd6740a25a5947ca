"""One line of a batch's input: a request that is given to its route as if it had come over HTTP, and the line that answers it."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import IO, Any, Literal, cast

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.dialects import messages, responses
from ferrum.server.error_shapes import error_body
from ferrum.server.errors import ApiError, internal
from ferrum.server.log import RequestRecord
from ferrum.server.routes import chat, completions
from ferrum.server.state import ServerState
from ferrum.server.wire import encode, explain

MAX_LINES = 50_000
RETRY_SECONDS = 0.25  # until a full queue is tried again, at least
MAX_RETRY_SECONDS = 5.0
_AHEAD = 2  # lines under way or waiting to be written, for each that runs

Route = Callable[[Request], Awaitable[HTTPResponse | None]]
ENDPOINTS: dict[str, Route] = {
    "/v1/chat/completions": chat.chat_completions,
    "/v1/completions": completions.completions,
    "/v1/responses": responses.responses,
    "/v1/messages": messages.messages,
}


class Stopped(Exception):
    """The server ends; the line is to be run by the next one."""


class Line(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's form."""

    custom_id: str = msgspec.field()
    method: Literal["POST"] = "POST"
    url: str
    body: dict[str, Any]


@dataclass
class _Request:
    """What a route looks at in a request."""

    body: bytes
    app: Any
    ctx: Any
    path: str
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    transport: None = None


@dataclass(frozen=True)
class Answered:
    """``line``: without its line break. ``good``: whether the request was answered 200."""

    line: bytes
    good: bool


_decoder = msgspec.json.Decoder(Line)


def read_lines(stream: IO[bytes], longest: int) -> Iterator[bytes]:
    """The lines of ``stream`` that are not blank; what is longer than ``longest`` bytes is cut, so that it is no JSON."""
    while line := stream.readline(longest + 1):
        while len(line) > longest and not line.endswith(b"\n"):
            if not (rest := stream.readline(longest)) or rest.endswith(b"\n"):
                break
        if line.strip():
            yield line.rstrip(b"\r\n")


async def answer_line(state: ServerState, raw: bytes, endpoint: str = "", owner: str = "") -> Answered:
    """The line that answers ``raw``. ``endpoint``: the only one that is allowed, empty for any. ``owner``: the name of the key
    whose limits hold. Raises Stopped."""
    try:
        line = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told = (
            explain(str(error)).message if isinstance(error, msgspec.ValidationError) else "the line is not valid JSON in UTF-8"
        )
        return refused(_custom_id(raw), "invalid_json_line", told)
    if line.url not in ENDPOINTS or (endpoint and line.url != endpoint):
        return refused(line.custom_id, "invalid_url", f"url must be {endpoint or ' or '.join(ENDPOINTS)}")
    if line.body.get("stream"):
        return refused(line.custom_id, "invalid_request", "a line of a batch cannot be streamed")
    record = RequestRecord(secrets.token_hex(12), "POST", route=line.url, key=owner)
    status, body = await _run(state, line, record)
    record.status = status
    state.log.request(record)
    response = {"status_code": status, "request_id": record.id, "body": msgspec.Raw(body)}
    made = {"id": f"batch_req_{record.id}", "custom_id": line.custom_id, "response": response, "error": None}
    return Answered(encode(made), status == 200)


async def _run(state: ServerState, line: Line, record: RequestRecord) -> tuple[int, bytes]:
    app, meter = SimpleNamespace(ctx=SimpleNamespace(state=state)), state.meters.get(record.key)
    context = SimpleNamespace(record=record, owner=record.key, meter=meter)
    request = cast(Request, _Request(encode(line.body), app, context, line.url))
    while True:
        try:
            if meter is not None:
                meter.count_request()
            response = await ENDPOINTS[line.url](request)
            assert response is not None  # only streams answer by themselves
            return response.status, response.body or b""
        except ApiError as error:
            if error.status == 503:
                raise Stopped from None
            if error.status != 429:
                record.error = error.code or error.type
                return error.status, encode(error_body(line.url, error, record.id))
            await asyncio.sleep(max(RETRY_SECONDS, min(error.retry_after, MAX_RETRY_SECONDS)))
        except Exception as error:
            state.log.failure(error)
            return 500, encode(error_body(line.url, internal(), record.id))


def refused(custom_id: str | None, code: str, message: str) -> Answered:
    error = {"code": code, "message": message}
    made = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, "response": None, "error": error}
    return Answered(encode(made), False)


def _custom_id(raw: bytes) -> str | None:
    """Of a line that is wrong otherwise."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    name = found.get("custom_id") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


async def in_order(
    lines: Iterator[bytes],
    answer: Callable[[bytes], Awaitable[Answered]],
    write: Callable[[Answered], Awaitable[None]],
    width: int,
) -> None:
    """Answer ``lines``, ``width`` at once, and write the answers in their order."""
    gate = asyncio.Semaphore(width)
    pending: deque[asyncio.Task[Answered]] = deque()

    async def one(line: bytes) -> Answered:
        async with gate:
            return await answer(line)

    try:
        for line in lines:
            pending.append(asyncio.ensure_future(one(line)))
            while len(pending) >= _AHEAD * width or (pending and pending[0].done()):
                await write(await pending[0])
                pending.popleft()
        while pending:
            await write(await pending[0])
            pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def whole_lines(stream: IO[bytes]) -> int:
    """How many lines ``stream``, which is open for reading and writing, holds; a last one that was cut is removed."""
    count = end = 0
    for line in stream:
        if not line.endswith(b"\n"):
            break
        count, end = count + 1, end + len(line)
    stream.seek(end)
    stream.truncate()
    return count

"""What the routes share: reading a body and writing an answer."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.server.errors import ApiError, unsupported
from ferrum.server.state import state_of
from ferrum.server.wire import BadRequest, check_structure, decode, encode

SESSION_HEADER = "x-ferrum-session"
# What curl and forms say unasked is taken for JSON too: that a page may send these without asking first is no matter, since its
# origin is looked at.
CONTENT_TYPES = frozenset({"", "application/json", "text/json", "text/plain", "application/x-www-form-urlencoded"})
INLINE_BYTES = 32 * 1024  # larger bodies are looked at before they are decoded, and read in a thread
T = TypeVar("T", bound="Checked")


class Checked(Protocol):
    def check(self) -> None: ...


async def read(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body, checked. Raises ApiError."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "compressed bodies are not supported", code="unsupported_encoding")
    if SESSION_HEADER in request.headers:
        raise unsupported(SESSION_HEADER, "sessions are not supported")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in CONTENT_TYPES:
        raise ApiError(415, "the content type must be application/json", code="unsupported_content_type")
    raw = request.body

    def work() -> T:
        if len(raw) > INLINE_BYTES:
            check_structure(raw)
        body = decode(raw, decoder)
        body.check()
        return body

    try:
        body = work() if len(raw) <= INLINE_BYTES else await state_of(request).in_thread(work)
    except BadRequest as error:
        raise ApiError(400, error.message, param=error.param, code=error.code) from None
    # Sanic stops reading when a body fills its buffer; without reading, the end of the connection would not be seen.
    transport: Any = request.transport
    if transport is not None:
        transport.resume_reading()
    return body


def answer(value: object, status: int = 200) -> HTTPResponse:
    return HTTPResponse(encode(value), status, content_type="application/json")

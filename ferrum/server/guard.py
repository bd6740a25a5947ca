"""What stands before every route: the key, browsers of other sites, too many connections, and errors that Sanic raises."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from sanic import Request
from sanic.exceptions import SanicException
from sanic.handlers import ErrorHandler
from sanic.response import HTTPResponse
from sanic.server.protocols.http_protocol import HttpProtocol

from ferrum.server.errors import ApiError, internal
from ferrum.server.log import log_failure
from ferrum.server.options import ServeOptions, is_loopback

OPEN_PATHS = frozenset({"/health", "/ready"})

_TEXTS = {
    400: "the request is malformed",
    404: "there is no such route",
    405: "the method is not allowed here",
    408: "the request took too long to arrive",
    413: "the request is too large",
    417: "the expectation cannot be met",
    503: "the server is not available",
}
_CODES = {404: "unknown_route", 405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large"}


def make_guard(options: ServeOptions) -> Callable[..., Coroutine[Any, Any, None]]:
    """The check that runs before a request is routed or its body read. It raises ApiError."""
    key = options.api_key.encode()

    async def guard(request: Request, **_: Any) -> None:
        if not key:
            check_origin(request)
        elif request.path not in OPEN_PATHS and not carries_key(request, key):
            raise ApiError(401, "a valid API key is required", code="invalid_api_key")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > options.max_body_bytes:
            raise ApiError(413, f"a request may have {options.max_body_bytes} bytes", code="request_too_large")

    return guard


def carries_key(request: Request, key: bytes) -> bool:
    """Whether exactly one Authorization header carries ``key``; takes the same time for every wrong one."""
    given = request.headers.getall("authorization", [])
    if len(given) != 1:
        return False
    scheme, _, token = given[0].partition(" ")
    right = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), key)
    return right and scheme.lower() == "bearer"


def check_origin(request: Request) -> None:
    """Without a key, a page from another site must not reach the server through its visitor's browser."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        host = ""
    if not is_loopback(host):
        raise ApiError(403, "requests from other sites are not allowed", code="forbidden_origin")


class ApiErrorHandler(ErrorHandler):
    """Every error as JSON; what is not expected is logged without the request."""

    def default(self, request: Request, exception: BaseException) -> HTTPResponse:
        if isinstance(exception, ApiError):
            return exception.response()
        if isinstance(exception, asyncio.CancelledError):  # the client is gone; nobody reads this
            return internal().response()
        if not isinstance(exception, SanicException):
            log_failure(exception)
            return internal().response()
        status = exception.status_code
        if status not in _TEXTS:
            status = 400 if 400 <= status < 500 else 500
        if status == 500:
            log_failure(exception)
            return internal().response()
        response = ApiError(status, _TEXTS[status], code=_CODES.get(status)).response()
        if status == 405:
            response.headers["allow"] = ", ".join(sorted(getattr(exception, "headers", {}).get("Allow", "").split(", ")))
        return response

    @staticmethod
    def log(request: Request, exception: Exception) -> None:
        """Sanic would write the URL; ``default`` writes what is needed."""


def limited_protocol(max_connections: int) -> type[HttpProtocol]:
    """Sanic's protocol that closes a connection beyond ``max_connections`` at once."""

    base: Any = HttpProtocol

    class LimitedProtocol(base):  # type: ignore[misc]
        __slots__ = ("_refused",)

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= max_connections:
                transport.write(_FULL)
                transport.close()
                self._refused = True
                return
            self._refused = False
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            if not self._refused:
                super().connection_lost(exc)

    return LimitedProtocol


_FULL_BODY = ApiError(503, "too many connections", code="too_many_connections").response().body or b""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)

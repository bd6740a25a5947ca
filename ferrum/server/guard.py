"""What stands before every route: the key, browsers of other sites, sizes; and errors that Sanic raises."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from sanic import Request
from sanic.exceptions import SanicException
from sanic.handlers import ErrorHandler
from sanic.response import BaseHTTPResponse, HTTPResponse

from ferrum.server.error_shapes import error_body
from ferrum.server.errors import ApiError, internal
from ferrum.server.log import Log, RequestRecord
from ferrum.server.options import ServeOptions
from ferrum.server.origins import Gate, cors_headers, preflight_headers
from ferrum.server.wire import encode

OPEN_PATHS = frozenset({"/", "/health", "/ready"})

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
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Answered(Exception):
    """An answer that is given before any route is looked for."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__()
        self.headers = headers

    def response(self) -> HTTPResponse:
        return HTTPResponse(status=204, headers=self.headers)


def make_guard(options: ServeOptions) -> Callable[..., Coroutine[Any, Any, None]]:
    """The check that runs before a request is routed or its body read. It raises ApiError, or Answered."""
    key = options.api_key.encode()
    gate = Gate(options.host, options.allowed_origins)

    async def guard(request: Request, **_: Any) -> None:
        method = request.method if request.method in _METHODS else "-"
        request.ctx.record = RequestRecord(secrets.token_hex(12), method)
        request.ctx.origin = check_origin(request, gate, needed=not key)
        if not key:
            check_host(request, gate)
        elif request.path not in OPEN_PATHS and not carries_key(request, key):
            raise ApiError(401, "a valid API key is required", code="invalid_api_key")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > options.max_body_bytes:
            raise ApiError(413, f"a request may have {options.max_body_bytes} bytes", code="request_too_large")

    return guard


def carries_key(request: Request, key: bytes) -> bool:
    """Whether ``key`` comes as a bearer token or as x-api-key, each given once; takes the same time for every wrong one."""
    bearers = request.headers.getall("authorization", [])
    plain = request.headers.getall("x-api-key", [])
    right = False
    if len(bearers) == 1:
        scheme, _, token = bearers[0].partition(" ")
        right = _same(token, key) and scheme.lower() == "bearer"
    return (len(plain) == 1 and _same(plain[0], key)) or right


def _same(given: str, key: bytes) -> bool:
    return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key)


def owner_of(request: Request) -> str:
    """The name of the key that ``request`` carries; empty where there are no keys."""
    return getattr(request.ctx, "owner", "")


def check_origin(request: Request, gate: Gate, *, needed: bool) -> str:
    """The origin whose pages may read the answer; empty when there is none. Raises ApiError, or Answered for a preflight.

    ``needed``: refuse other origins. With a key they are only not told the answer, since they do not know the key either.
    """
    given = request.headers.getall("origin", [])
    if not given:
        return ""
    allowed = len(given) == 1 and gate.allows_origin(given[0])
    preflight = request.method == "OPTIONS" and "access-control-request-method" in request.headers
    if not allowed:
        if needed or preflight:
            raise ApiError(403, "pages of this origin are not allowed; see --allowed-origins", code="forbidden_origin")
        return ""
    if preflight:
        asked = request.headers.get("access-control-request-headers", "")
        private = request.headers.get("access-control-request-private-network") == "true"
        raise Answered(preflight_headers(given[0], asked, private))
    return str(given[0])


def check_host(request: Request, gate: Gate) -> None:
    """Browsers always say which host they asked for; a name of another site that leads here must not work."""
    given = request.headers.getall("host", [])
    if len(given) > 1 or (given and not gate.allows_host(given[0])):
        raise ApiError(403, "this host name is not this server's; without a key only loopback names are", code="forbidden_host")


def add_headers(request: Request, response: BaseHTTPResponse) -> None:
    """What every answer carries."""
    origin = getattr(request.ctx, "origin", "")
    if origin:
        response.headers.update(cors_headers(origin))
    record: RequestRecord | None = getattr(request.ctx, "record", None)
    if record is not None:
        response.headers["x-request-id"] = record.id


class ApiErrorHandler(ErrorHandler):
    """Every error as JSON; what is not expected is logged without the request."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def default(self, request: Request, exception: BaseException) -> HTTPResponse:
        if isinstance(exception, Answered):
            return exception.response()
        error = self._explain(exception)
        note_error(request, error)
        record: RequestRecord | None = getattr(request.ctx, "record", None)
        body = error_body(request.path, error, record.id if record else "")
        response = HTTPResponse(encode(body), error.status, error.headers, "application/json")
        if error.status == 405:
            allowed = getattr(exception, "headers", {}).get("Allow", "").split(", ")
            response.headers["allow"] = ", ".join(sorted(allowed))
        return response

    def _explain(self, exception: BaseException) -> ApiError:
        if isinstance(exception, ApiError):
            return exception
        if isinstance(exception, asyncio.CancelledError):  # the client is gone; nobody reads this
            return internal()
        if not isinstance(exception, SanicException):
            self._log.failure(exception)
            return internal()
        status = exception.status_code
        if status not in _TEXTS:
            status = 400 if 400 <= status < 500 else 500
        if status == 500:
            self._log.failure(exception)
            return internal()
        return ApiError(status, _TEXTS[status], code=_CODES.get(status))

    @staticmethod
    def log(request: Request, exception: Exception) -> None:
        """Sanic would write the URL; ``default`` writes what is needed."""


def note_error(request: Request, error: ApiError) -> None:
    """Remember why a request failed, for the line about it."""
    record: RequestRecord | None = getattr(request.ctx, "record", None) if request is not None else None
    if record is not None:
        record.error = error.code or error.type

"""What stands before every route: the key, browsers of other sites, sizes; and errors that Sanic raises."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from httptools import parse_url
from sanic import Request
from sanic.exceptions import SanicException
from sanic.handlers import ErrorHandler
from sanic.response import BaseHTTPResponse, HTTPResponse

from ferrum.server.error_shapes import error_body
from ferrum.server.errors import ApiError, internal
from ferrum.server.keys import Key
from ferrum.server.log import Log, RequestRecord
from ferrum.server.meters import Meter, find_key
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
    """The answer to a preflight, which is given before any route is looked for."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__()
        self.headers = headers

    def response(self) -> HTTPResponse:
        return HTTPResponse(status=200, headers=self.headers)


def make_guard(options: ServeOptions, meters: Mapping[str, Meter]) -> Callable[..., Coroutine[Any, Any, None]]:
    """The check that runs before a request is routed or its body read. It raises ApiError, or Answered."""
    keys = options.keys
    gate = Gate(options.host, options.allowed_origins)

    async def guard(request: Request, **_: Any) -> None:
        method = request.method if request.method in _METHODS else "-"
        request.ctx.record = RequestRecord(secrets.token_hex(12), method)
        if options.root_path:
            strip_root(request, options.root_path)
        request.ctx.origin = check_origin(request, gate, needed=not keys)
        if keys:
            if request.path not in OPEN_PATHS:
                admit(request, find_key(request, keys), meters)
        elif not options.socket:  # no page of a browser reaches that
            check_host(request, gate)
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > options.max_body_bytes:
            raise ApiError(413, f"a request may have {options.max_body_bytes} bytes", code="request_too_large")

    return guard


def admit(request: Request, key: Key | None, meters: Mapping[str, Meter]) -> None:
    """Note whose request it is, and that it was made. Raises ApiError."""
    if key is None:
        raise ApiError(401, "a valid API key is required", code="invalid_api_key")
    request.ctx.owner = request.ctx.record.key = key.name
    request.ctx.meter = meters[key.name]
    if request.method == "POST":
        request.ctx.meter.count_request()


def strip_root(request: Request, root: str) -> None:
    """Route a path under ``--root-path`` as if it had come without, as it does from a proxy that strips it."""
    path, _, query = request.raw_url.partition(b"?")
    prefix = root.encode()
    if path == prefix or path.startswith(prefix + b"/"):
        request.raw_url = (path[len(prefix) :] or b"/") + (b"?" + query if query else b"")
        request._parsed_url = parse_url(request.raw_url)


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
        refusal = ApiError(403, "pages of this origin are not allowed; see --allowed-origins", code="forbidden_origin")
        if preflight:  # the browser reads the headers alone: what is not allowed in them is not sent
            note_error(request, refusal)
            raise Answered({})
        if needed:
            raise refusal
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
    meter: Meter | None = getattr(request.ctx, "meter", None)
    if meter is not None:
        response.headers.update(meter.headers())


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

"""Errors in OpenAI's form, with fixed texts: nothing of the machine, the key or the prompt goes into them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sanic.response import HTTPResponse

from ferrum.errors import FerrumError, one_line
from ferrum.server.wire import encode

MAX_RETRY_SECONDS = 600
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable_error"}
_CONTEXT = "context_length_exceeded"

# code of a FerrumError: (HTTP status, code in the answer)
_STATUS: Mapping[str, tuple[int, str]] = {
    "prompt-too-long": (400, _CONTEXT),
    "request-too-long": (400, _CONTEXT),
    "prompt-empty": (400, "invalid_value"),
    "no-messages": (400, "invalid_value"),
    "invalid-parameter": (400, "invalid_value"),
    "invalid-token": (400, "invalid_value"),
    "invalid-text": (400, "invalid_value"),
    "invalid-arguments": (400, "invalid_value"),
    "text-too-long": (400, _CONTEXT),
    "unknown-template-option": (400, "unsupported_parameter"),
    "template-refused": (400, "invalid_value"),
    "template-failed": (400, "invalid_value"),
    "template-limit": (400, "invalid_value"),
    "grammar-refused": (400, "invalid_schema"),
    "grammar-limit": (400, "invalid_schema"),
    "grammar-missing": (400, "unsupported_parameter"),
    "grammar-failed": (400, "invalid_schema"),
    "queue-full": (429, "queue_full"),
    "engine-draining": (503, "shutting_down"),
    "engine-closed": (503, "shutting_down"),
    "engine-died": (503, "engine_unavailable"),
}


class ApiError(Exception):
    """An answer that is an error. ``param`` names the field, ``code`` is stable. ``retry_after``: seconds, of 429 and 503."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: float = 1.0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.param = one_line(param, 200) if param else None
        self.code = code
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return _TYPES.get(self.status, default)

    @property
    def headers(self) -> dict[str, str]:
        if self.status in (429, 503):
            return {"retry-after": str(min(MAX_RETRY_SECONDS, max(1, math.ceil(self.retry_after))))}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> HTTPResponse:
        return HTTPResponse(encode(self.body()), self.status, self.headers, "application/json")


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str = "") -> ApiError:
    return ApiError(400, message or f"{param} is not supported", param=param, code="unsupported_parameter")


def field_of(param: str) -> str:
    """The field of the request that a path such as ``messages[0].content`` begins with."""
    return param.replace("[", ".").partition(".")[0]


@contextmanager
def in_words_of(params: Mapping[str, str]) -> Iterator[None]:
    """Errors from here name fields by ``params``, a dialect's names for OpenAI's."""
    try:
        yield
    except ApiError as error:
        error.param = params.get(field_of(error.param or ""), error.param)
        raise


def internal() -> ApiError:
    return ApiError(500, "the server failed to answer this request", code="internal_error")


def from_ferrum(error: FerrumError, params: Mapping[str, str] | None = None) -> ApiError:
    """``error`` of the engine or the text layer as an answer. ``params`` renames its ``where`` to the request's field."""
    if error.code not in _STATUS:
        return internal()
    status, code = _STATUS[error.code]
    if error.code == "engine-died":
        return ApiError(status, "the engine is not available", code=code)
    param = (params or {}).get(error.where, error.where) if status == 400 else None
    message = error.what if not error.next_step else f"{error.what}: {error.next_step}"
    return ApiError(status, message, param=param or None, code=code)

"""How each dialect writes an error. The path tells the dialect, since some errors come before there is a route."""

from __future__ import annotations

import re
from typing import Any, Literal

from ferrum.server.errors import ApiError

_ANTHROPIC_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
_ANTHROPIC_TYPES |= {429: "rate_limit_error", 503: "overloaded_error", 500: "api_error"}


def api_of(path: str) -> Literal["OpenAI", "Anthropic", "Ollama"]:
    """Whose API a path is of."""
    if path.removeprefix("/v1").startswith("/messages"):
        return "Anthropic"
    return "Ollama" if path.startswith("/api/") else "OpenAI"


def error_body(path: str, error: ApiError, request_id: str) -> dict[str, Any]:
    api = api_of(path)
    if api == "Anthropic":
        return anthropic(error, request_id)
    return ollama(error) if api == "Ollama" else error.body()


def anthropic(error: ApiError, request_id: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _with_param(error)}, "request_id": request_id}


def ollama(error: ApiError) -> dict[str, Any]:
    return {"error": _with_param(error)}


def _with_param(error: ApiError) -> str:
    """Their errors have no place for the field's name."""
    named = not error.param or re.search(rf"(?<!\w){re.escape(error.param)}(?!\w)", error.message)
    return error.message if named else f"{error.param}: {error.message}"

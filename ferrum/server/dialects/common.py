"""What the dialects share: a chat request from the JSON of one, checked as any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ferrum.server.errors import ApiError, field_of, invalid
from ferrum.server.protocol import ChatRequest
from ferrum.server.wire import BadRequest, explain


def chat_request(fields: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
    """``fields`` of OpenAI's chat API as a request. ``params``: the dialect's names. Raises ApiError that says theirs."""
    try:
        request = msgspec.convert({k: v for k, v in fields.items() if v is not None}, ChatRequest)
        request.check()
    except msgspec.ValidationError as error:
        raise _renamed(explain(str(error)), params) from None
    except BadRequest as error:
        raise _renamed(error, params) from None
    return request


def _renamed(error: BadRequest, params: Mapping[str, str]) -> ApiError:
    """The field's first part in the words of the dialect."""
    param = error.param or ""
    first = field_of(param)
    message = error.message
    if first in params:
        message = message.replace(first, params[first], 1)
        param = params[first]
    return invalid(message, param or None, error.code)


def joined(parts: str | list[Any] | None, separator: str = "\n") -> str:
    """The text of a content that is one text or several parts with ``text``."""
    if parts is None or isinstance(parts, str):
        return parts or ""
    return separator.join(part.text for part in parts)


def parsed_arguments(text: str) -> Any:
    """Arguments as an object; what the model cut off or misspelled is given as it is, in a field that no tool has."""
    try:
        value = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        value = None
    return value if isinstance(value, dict) else {"_unparsed": text}

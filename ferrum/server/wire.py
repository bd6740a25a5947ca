"""Reading requests strictly and writing answers.

msgspec's decoder takes no NaN, Infinity, lone surrogate, trailing text or unknown field. Here its errors become answers
that name the field, and nesting is bounded.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

MAX_DEPTH = 64
MAX_CONTAINERS = 16_384  # objects and arrays of one request: about a microsecond each to decode
MAX_ITEMS = 1 << 18  # their elements
MAX_KEYS = 1 << 15  # names in objects: each makes a text and a place in a table
MAX_STRINGS = 1 << 16  # names counted
MAX_DIGITS = 100  # of a number; the time to read one grows with the square
MAX_EXPLAINED = 1000  # characters of a decoder's message, which may quote a name of megabytes

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
T = TypeVar("T")
_PIECE = 128 * 1024
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_PATH = re.compile(r"^(?P<problem>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_SAID = re.compile(r"^(?P<name>[a-z_]+) (?P<what>is not supported|must be .*)$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)


class BadRequest(Exception):
    """The body is not what the route takes. ``param``: the field's path, None for the whole body."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The request in ``body``. Raises BadRequest."""
    if not body:
        raise BadRequest("the request has no body", None, "invalid_json")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest("the body is not valid JSON in UTF-8", None, "invalid_json") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply", None, "invalid_json") from None


def check_structure(body: bytes) -> None:
    """Raises BadRequest for a body of so many parts, or of such numbers, that decoding it would hold up other requests.

    What is inside strings does not count. Runs in a thread; it gives way to others as it goes.
    """
    if body.count(b'"') - body.count(b'\\"') > 2 * MAX_STRINGS:
        raise too_many_parts()
    containers = items = keys = strings = at = 0
    while at < len(body):
        quote = body.find(b'"', at)
        between = body[at:] if quote < 0 else body[at:quote]
        containers += between.count(b"[") + between.count(b"{")
        items += between.count(b",")
        keys += between.count(b":")
        strings += quote >= 0
        if containers > MAX_CONTAINERS or items > MAX_ITEMS or keys > MAX_KEYS or strings > MAX_STRINGS:
            raise too_many_parts()
        if len(between) > MAX_DIGITS and _has_long_number(between):
            raise BadRequest(f"a number may have {MAX_DIGITS} digits", None, "request_too_large")
        at = len(body) if quote < 0 else _string_end(body, quote + 1)


def _has_long_number(between: bytes) -> bool:
    """In pieces, since a search gives way to no other thread; they overlap by the longest number that is allowed."""
    return any(_LONG_NUMBER.search(between, at, at + _PIECE + MAX_DIGITS) for at in range(0, len(between), _PIECE))


def too_many_parts() -> BadRequest:
    return BadRequest("the body has too many parts", None, "request_too_large")


def _string_end(body: bytes, at: int) -> int:
    """The position after the quote that closes the string whose text begins at ``at``, or the end of ``body``."""
    while at < len(body):
        # in pieces, since a match gives way to no other thread
        found = _INSIDE_STRING.match(body, at, min(len(body), at + _PIECE))
        end = found.end() if found else at
        if body[end : end + 1] == b'"':
            return end + 1
        if end == at:  # a backslash and nothing after it
            break
        at = end
    return len(body)


def explain(text: str) -> BadRequest:
    """msgspec's message as an answer: what is wrong and where."""
    if len(text) > MAX_EXPLAINED:
        text = f"{text[: MAX_EXPLAINED // 2]}…{text[-MAX_EXPLAINED // 2 :]}"
    matched = _PATH.match(text)
    problem, path = (matched["problem"], matched["path"] or "") if matched else (text, "")
    param = path.removeprefix("$").removeprefix(".")
    for pattern, message, code in (
        (_UNKNOWN, "{} is not a known field", "unknown_parameter"),
        (_MISSING, "{} is missing", "missing_required_parameter"),
    ):
        found = pattern.match(problem)
        if found:
            param = f"{param}.{found['name']}" if param else found["name"]
            return BadRequest(message.format(param), top_level(param), code)
    found = _SAID.match(problem)
    if found:  # by a struct about one of its fields
        param = f"{param}.{found['name']}" if param else found["name"]
        code = "unsupported_parameter" if found["what"] == "is not supported" else "invalid_value"
        return BadRequest(f"{param} {found['what']}", top_level(param), code)
    if problem.startswith("Expected `null`"):
        return BadRequest(f"{param} is not supported", top_level(param), "unsupported_parameter")
    problem = problem.replace("`", "").replace(" | null", "")
    code = "unsupported_parameter" if " is not supported " in problem else "invalid_value"
    return BadRequest(f"{param}: {problem}" if param else problem, top_level(param), code)


def top_level(param: str) -> str | None:
    """Faults inside some fields are named by the field as a whole."""
    for name in ("tools", "tool_choice", "logit_bias"):
        if param == name or param.startswith((f"{name}[", f"{name}.")):
            return name
    return param or None


def check_depth(value: Any, param: str, limit: int = MAX_DEPTH) -> None:
    """Raises BadRequest for free-form JSON that is nested deeper than ``limit``."""
    level = [value]
    for _ in range(limit):
        level = [c for v in level if isinstance(v, (dict, list)) for c in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return
    raise BadRequest(f"{param} is nested too deeply", top_level(param))

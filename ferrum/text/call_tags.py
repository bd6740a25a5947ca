"""Calls in tags: a name, then pairs of key and value; values get the type that the function's schema declares."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.text.call_json import MAX_NAME_CHARS
from ferrum.text.json_scan import BLANK
from ferrum.text.tool_bodies import Call, CallWriter

TEXT_MARK = "true"  # of DeepSeek's string="true"


@dataclass(frozen=True, slots=True)
class Tags:
    """``opener`` NAME ``name_end``, then per argument ``key_open`` KEY ``key_close`` ``value_open`` VALUE ``value_close``, then
    one of ``ends``.

    ``name_end`` "": the name ends with its line, with the first key, or with the call. ``name`` and ``key``: what of the text
    there is the name (group 1); a second group of ``key`` says whether the value is a text.
    """

    opener: str
    name_end: str
    key_open: str
    key_close: str
    value_close: str
    ends: tuple[str, ...]
    value_open: str = ""
    name: str = r"\s*([\w.-]+)\s*"
    key: str = r"\s*(.+?)\s*"
    keeps_opener: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, self.name_end, self.key_open, self.key_close, self.value_open, self.value_close, *self.ends)

    def reader(self) -> Call:
        return _TagsReader(self)


class _TagsReader:
    def __init__(self, syntax: Tags) -> None:
        self.done = False
        self.failed = False
        self._syntax = syntax
        self._held = ""
        self._name = ""
        self._key: re.Match[str] | None = None
        self._count = 0

    def feed(self, text: str, out: CallWriter) -> str:
        self._held += text
        while self._advance(out):
            pass
        return self._held if self.done or self.failed else ""

    def finish(self, out: CallWriter) -> None:
        self.failed = not self._name

    def _advance(self, out: CallWriter) -> bool:
        """Take one tag or value off the held text; False when more text is needed."""
        if self.done or self.failed:
            return False
        if not self._name:
            return self._find_name(out)
        if self._key is not None:
            return self._value(self._key, out)
        syntax, body = self._syntax, self._held.lstrip(BLANK)
        for end in syntax.ends:
            if body.startswith(end):
                return self._end(body[len(end) :], out)
        if body.startswith(syntax.key_open):
            return self._find_key(body[len(syntax.key_open) :])
        if any(tag.startswith(body) for tag in (syntax.key_open, *syntax.ends)):
            return False
        return self._end(self._held, out)

    def _end(self, rest: str, out: CallWriter) -> bool:
        out.arguments("}" if self._count else "{}")
        self._held = rest
        self.done = True
        return False

    def _find_name(self, out: CallWriter) -> bool:
        syntax = self._syntax
        ends = (syntax.name_end,) if syntax.name_end else ("\n", syntax.key_open, *syntax.ends)
        body = self._held if syntax.name_end else self._held.lstrip(BLANK)
        found = [(at, end) for end in ends if (at := body.find(end)) >= 0]
        if not found:
            self.failed = len(body) > MAX_NAME_CHARS
            return False
        at, end = min(found)
        name = re.fullmatch(syntax.name, body[:at])
        if name is None or name[1] not in out.schemas:
            self.failed = True
            return False
        self._name = name[1]
        self._held = body[at + len(end) :] if end in (syntax.name_end, "\n") else body[at:]
        out.name(self._name)
        return True

    def _find_key(self, body: str) -> bool:
        at = body.find(self._syntax.key_close)
        if at < 0:
            return False
        self._key = re.fullmatch(self._syntax.key, body[:at], re.DOTALL)
        if self._key is None:
            self._key = re.fullmatch(r"(.*)", body[:at], re.DOTALL)
        self._held = body[at + len(self._syntax.key_close) :]
        return True

    def _value(self, key: re.Match[str], out: CallWriter) -> bool:
        at = self._held.find(self._syntax.value_close)
        if at < 0:
            return False
        raw, self._held = self._held[:at], self._held[at + len(self._syntax.value_close) :]
        if self._syntax.value_open:
            raw = raw.lstrip(BLANK).removeprefix(self._syntax.value_open)
        else:
            raw = raw.removeprefix("\n").removesuffix("\n")
        if raw.startswith("<![CDATA[") and raw.endswith("]]>"):
            raw = raw[len("<![CDATA[") : -len("]]>")]
        is_text = key.re.groups > 1 and key[2] == TEXT_MARK
        value = raw if is_text else typed_value(raw, out.schemas[self._name], key[1])
        begin = ", " if self._count else "{"
        out.arguments(f"{begin}{json.dumps(key[1], ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}")
        self._count += 1
        self._key = None
        return True


def typed_value(raw: str, schema: Mapping[str, Any], parameter: str) -> Any:
    """``raw`` as the type that a JSON schema declares for ``parameter``; text that does not fit stays text."""
    properties = schema.get("properties")
    declared = properties.get(parameter) if isinstance(properties, Mapping) else None
    kind = declared.get("type") if isinstance(declared, Mapping) else None
    if kind == "string":
        return raw
    try:
        return json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _python_value(raw) if kind is not None else raw


def _python_value(raw: str) -> Any:
    """Some templates write what is no text as Python does, and their models learn it."""
    try:
        value = ast.literal_eval(raw.strip())
        json.dumps(value)
        return value
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return raw


def _no_constant(name: str) -> Any:
    raise ValueError(name)

"""The ways in which models write tool calls, each an incremental reader of what follows the opening marker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ferrum.text.json_scan import MAX_NAME_CHARS, CallScanner

_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is not part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallName:
    """Call ``index`` of this answer begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of the arguments of call ``index``."""

    index: int
    text: str


Piece: TypeAlias = Content | CallName | CallArguments
Schemas: TypeAlias = Mapping[str, Mapping[str, Any]]


class Body(Protocol):
    """What follows an opening marker: one call, or several.

    ``feed`` returns the text that is not its own once it is ``done``. ``failed``: what was fed is no call.
    """

    done: bool
    failed: bool

    def feed(self, text: str, out: CallWriter) -> str: ...

    def finish(self, out: CallWriter) -> None: ...


class CallWriter:
    """Collects pieces and numbers the calls."""

    def __init__(self, schemas: Schemas) -> None:
        self.schemas = schemas
        self.pieces: list[Piece] = []
        self.count = 0

    def name(self, name: str) -> None:
        self.pieces.append(CallName(self.count, name))
        self.count += 1

    def arguments(self, text: str) -> None:
        if text:
            self.pieces.append(CallArguments(self.count - 1, text))

    def content(self, text: str) -> None:
        if text:
            self.pieces.append(Content(text))


class JsonBody:
    """``{"name": …, "arguments": {…}}`` and then ``end`` (may be empty)."""

    def __init__(self, end: str = "") -> None:
        self.done = False
        self.failed = False
        self._end = end
        self._scanner = CallScanner()
        self._announced = False
        self._tail = ""

    def feed(self, text: str, out: CallWriter) -> str:
        if self._scanner.done:
            return self._close(text)
        used = self._scanner.feed(text)
        self._publish(out)
        if self._scanner.failed or (self._scanner.done and not self._announced):
            self.failed = not self._announced
            self.done = self._announced
            return text[used:]
        return self._close(text[used:]) if self._scanner.done else ""

    def _publish(self, out: CallWriter) -> None:
        scanner = self._scanner
        if not self._announced and scanner.name is not None:
            if scanner.name not in out.schemas:
                scanner.failed = True
                return
            out.name(scanner.name)
            self._announced = True
        if self._announced:
            out.arguments(scanner.take())
            if scanner.done and not scanner.has_arguments:
                out.arguments("{}")

    def _close(self, text: str) -> str:
        """After the object: white space and the closing marker. Without the marker the text is somebody else's."""
        self._tail = (self._tail + text).lstrip(_BLANK) if self._end else text
        if self._end and self._end.startswith(self._tail) and self._tail != self._end:
            return ""
        self.done = True
        return self._tail.removeprefix(self._end)

    def finish(self, out: CallWriter) -> None:
        self.failed = not self._announced


class JsonListBody:
    """``[{…}, {…}]`` of Mistral's models, or one object, or their newer ``name{…}`` and ``name[ARGS]{…}``."""

    ARGS = "[ARGS]"

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._item: JsonBody | None = None
        self._listed = False
        self._name = ""
        self._scanner: CallScanner | None = None
        self._any = False

    def feed(self, text: str, out: CallWriter) -> str:
        while text and not self.done and not self.failed:
            if self._item is not None:
                text = self._feed_item(text, out)
            elif self._scanner is not None:
                text = self._feed_arguments(text, out)
            else:
                text = self._between(text, out)
        return text

    def _feed_item(self, text: str, out: CallWriter) -> str:
        assert self._item is not None
        rest = self._item.feed(text, out)
        if self._item.failed:
            self.failed = not self._any
            self.done = self._any
        elif self._item.done:
            self._any = True
            self._item = None
            self.done = not self._listed
        return rest

    def _feed_arguments(self, text: str, out: CallWriter) -> str:
        assert self._scanner is not None
        used = self._scanner.feed(text)
        out.arguments(self._scanner.take())
        self.done = self._scanner.done or self._scanner.failed
        return text[used:]

    def _between(self, text: str, out: CallWriter) -> str:
        char = text[0]
        if self._name or char not in _BLANK + "[{],":
            self._name_char(char, out)
        elif char == "[":
            self._listed = True
        elif char == "{":
            self._item = JsonBody()
            return text
        elif char == "]":
            self.done, self.failed = self._any, not self._any
        return text[1:]

    def _name_char(self, char: str, out: CallWriter) -> None:
        if char != "{":
            self._name += char
            self.failed = len(self._name) > MAX_NAME_CHARS
            return
        name = self._name.strip().removesuffix(self.ARGS)
        self.failed = name not in out.schemas
        if not self.failed:
            out.name(name)
            self._any = True
            self._scanner = CallScanner()
            self._scanner.feed('{"arguments":{')
            out.arguments(self._scanner.take())

    def finish(self, out: CallWriter) -> None:
        if self._item is not None:
            self._item.finish(out)
            self._any = self._any or not self._item.failed
        self.failed = not self._any


class XmlBody:
    """``<function=f><parameter=p>text</parameter>…</function></tool_call>`` of Qwen3-Coder; values get their schema's type."""

    def __init__(self, end: str) -> None:
        self.done = False
        self.failed = False
        self._end = end
        self._held = ""
        self._name = ""
        self._parameter = ""
        self._count = 0

    def feed(self, text: str, out: CallWriter) -> str:
        self._held += text
        while self._advance(out):
            pass
        return self._held if self.done or self.failed else ""

    def _advance(self, out: CallWriter) -> bool:
        """Take one tag or value off the held text; False when more text is needed."""
        if self.done or self.failed:
            return False
        if self._parameter:
            return self._value(out)
        body = self._held.lstrip(_BLANK)
        if not self._name:
            return self._function(body, out)
        for tag in ("</function>", self._end):
            if body.startswith(tag):
                self._held = body[len(tag) :]
                if tag == self._end:
                    out.arguments("}")
                    self.done = True
                return True
        if body.startswith("<parameter="):
            at = body.find(">")
            if at < 0:
                return False
            self._parameter, self._held = body[len("<parameter=") : at].strip(), body[at + 1 :]
            return True
        if any(tag.startswith(body) for tag in ("<parameter=", "</function>", self._end)):
            return False
        out.arguments("}")
        self._held = body
        self.done = True
        return False

    def _function(self, body: str, out: CallWriter) -> bool:
        opening = "<function="
        if not body.startswith(opening):
            self.failed = not opening.startswith(body)
            return False
        at = body.find(">")
        if at < 0:
            self.failed = len(body) > MAX_NAME_CHARS
            return False
        name = body[len(opening) : at].strip()
        if name not in out.schemas:
            self.failed = True
            return False
        self._name, self._held = name, body[at + 1 :]
        out.name(name)
        out.arguments("{")
        return True

    def _value(self, out: CallWriter) -> bool:
        closing = "</parameter>"
        at = self._held.find(closing)
        if at < 0:
            return False
        raw, self._held = self._held[:at], self._held[at + len(closing) :]
        raw = raw.removeprefix("\n").removesuffix("\n")
        value = typed_value(raw, out.schemas[self._name], self._parameter)
        comma = ", " if self._count else ""
        out.arguments(f"{comma}{json.dumps(self._parameter, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}")
        self._count += 1
        self._parameter = ""
        return True

    def finish(self, out: CallWriter) -> None:
        self.failed = not self._name


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
        return raw


def _no_constant(name: str) -> Any:
    raise ValueError(name)

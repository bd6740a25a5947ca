"""Calls in JSON: an object with the name inside, or a name with an object behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ferrum.text.json_scan import NAME_KEYS, CallScanner, ValueScanner
from ferrum.text.tool_bodies import Call, CallWriter

MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class JsonObject:
    """``{"name": …, "arguments": {…}}``; ``keyed``: ``{NAME: {…}}``."""

    names: tuple[str, ...] = NAME_KEYS
    keyed: bool = False
    opener: str = "{"
    keeps_opener: bool = True
    marks: tuple[str, ...] = ()

    def reader(self) -> Call:
        return _ObjectReader(CallScanner(self.names, keyed=self.keyed))


class _ObjectReader:
    def __init__(self, scanner: CallScanner) -> None:
        self.done = False
        self.failed = False
        self._scanner = scanner
        self._announced = False

    def feed(self, text: str, out: CallWriter) -> str:
        scanner = self._scanner
        used = scanner.feed(text)
        if not self._announced and scanner.name and scanner.name in out.schemas:  # also if what follows it fails
            self._announced = True
            out.name(scanner.name)
        scanner.failed = scanner.failed or (scanner.name is not None and not self._announced)
        if self._announced:
            out.arguments(scanner.take())
            if scanner.done and not scanner.has_arguments:
                out.arguments("{}")
        if scanner.failed or scanner.done:
            self.done, self.failed = self._announced, not self._announced
        return text[used:]

    def finish(self, out: CallWriter) -> None:
        self.failed = not self._announced


@dataclass(frozen=True, slots=True)
class NamedObject:
    """``opener``, a name, one of ``name_ends``, perhaps ``filler``, ``{…}``, perhaps ``end``.

    ``name``: what of the text before ``name_ends`` is the name (group 1). A name may end where the object begins: "{".
    """

    opener: str
    name_ends: tuple[str, ...]
    name: str = r"\s*([\w.-]+)\s*"
    filler: str = ""
    end: str = ""
    keeps_opener: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, *self.name_ends, self.end, self.name)

    def reader(self) -> Call:
        return _NamedReader(self)


class _NamedReader:
    def __init__(self, syntax: NamedObject) -> None:
        self.done = False
        self.failed = False
        self._syntax = syntax
        self._held = ""
        self._announced = False
        self._value = ValueScanner()
        self._begun = False

    def feed(self, text: str, out: CallWriter) -> str:
        self._held += text
        if not self._announced and not self._find_name(out):
            return self._held if self.failed else ""
        if not self._begun and not self._find_object(out):
            return self._rest(out)
        if not self._value.done:
            self._take_object(out)
        return self._close() if self._value.done else ""

    def _take_object(self, out: CallWriter) -> None:
        taken = []
        for char in self._held:
            self._value.takes(char)
            taken.append(self._value.spelled(char))
            if self._value.done:
                break
        out.arguments("".join(taken))
        self._held = self._held[len(taken) :]

    def _find_name(self, out: CallWriter) -> bool:
        found = [(at, end) for end in self._syntax.name_ends if (at := self._held.find(end)) >= 0]
        if not found:
            self.failed = len(self._held) > MAX_NAME_CHARS
            return False
        at, end = min(found)
        name = re.fullmatch(self._syntax.name, self._held[:at])
        if name is None or name[1] not in out.schemas:
            self.failed = True
            return False
        self._held = self._held[at if end == "{" else at + len(end) :]
        self._announced = True
        out.name(name[1])
        return True

    def _find_object(self, out: CallWriter) -> bool:
        body = self._held.lstrip()
        if self._syntax.filler and body.startswith(self._syntax.filler):
            body = body[len(self._syntax.filler) :].lstrip()
        self._begun = body.startswith("{")
        if self._begun:
            self._held = body
        elif body and (body == self._syntax.end or not any(m.startswith(body) for m in (self._syntax.filler, self._syntax.end))):
            out.arguments("{}")  # a name without arguments
            self.done = True
        return self._begun

    def _rest(self, out: CallWriter) -> str:
        return self._held.lstrip().removeprefix(self._syntax.end) if self.done else ""

    def _close(self) -> str:
        """After the object: blanks and ``end``. Without it the text is somebody else's."""
        body, end = self._held.lstrip(), self._syntax.end
        if end and end.startswith(body) and body != end:
            return ""
        self.done = True
        return body.removeprefix(end) if end and body.startswith(end) else self._held

    def finish(self, out: CallWriter) -> None:
        if self._announced and not self._begun:
            out.arguments("{}")
        self.failed = not self._announced

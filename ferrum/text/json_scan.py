"""A scanner for one JSON object that arrives in pieces: its ``name``, and the raw text of its arguments as it grows."""

from __future__ import annotations

import json
from enum import Enum, auto

_BLANK = " \t\r\n"
_OPEN, _CLOSE = "{[", "}]"
MAX_KEY_CHARS = 64
MAX_NAME_CHARS = 256
ARGUMENT_KEYS = ("arguments", "parameters")


class _Expect(Enum):
    OBJECT = auto()
    KEY = auto()
    KEY_TEXT = auto()
    COLON = auto()
    VALUE = auto()
    VALUE_TEXT = auto()
    COMMA = auto()
    END = auto()


class CallScanner:
    """Reads ``{"name": …, "arguments": {…}}`` character by character.

    ``name`` is set once it was read. ``take`` returns the arguments' text that is new. ``done``: the object is complete.
    ``failed``: it is not a call. Arguments written as a JSON string are decoded and come as one piece.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.failed = False
        self._expect = _Expect.OBJECT
        self._key = ""
        self._raw: list[str] = []
        self._arguments: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.has_arguments = False

    @property
    def done(self) -> bool:
        return self._expect is _Expect.END

    def take(self) -> str:
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def feed(self, text: str) -> int:
        """Scan ``text``; how many characters belong to the object. Stops at its end and at a fault."""
        for at, char in enumerate(text):
            self._step(char)
            if self.failed:
                return at
            if self.done:
                return at + 1
        return len(text)

    def _step(self, char: str) -> None:
        expect = self._expect
        if expect is _Expect.VALUE_TEXT:
            self._value(char)
        elif expect is _Expect.KEY_TEXT:
            self._key_text(char)
        elif char in _BLANK:
            return
        elif expect is _Expect.VALUE:
            self._begin_value(char)
        elif (expect, char) in _NEXT:
            self._expect = _NEXT[expect, char]
            self._raw = [char]
        else:
            self.failed = True

    def _key_text(self, char: str) -> None:
        self._raw.append(char)
        if len(self._raw) > MAX_KEY_CHARS:
            self.failed = True
        elif self._string_ends(char):
            self._key = self._decoded() or ""
            self._expect = _Expect.COLON

    def _begin_value(self, char: str) -> None:
        if self._key in ARGUMENT_KEYS and char not in _OPEN and char != '"' and char != "n":
            self.failed = True
            return
        self._raw = []
        self._depth = 0
        self._in_string = False
        self._expect = _Expect.VALUE_TEXT
        self._value(char)

    def _value(self, char: str) -> None:
        if not self._depth and not self._in_string and self._raw and self._raw[0] not in '{["':
            if char in _BLANK or char in ",}":  # the end of a number, true, false or null
                self._end_value()
                self._step(char)
                return
        elif self._in_string:
            if self._string_ends(char):
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in _OPEN:
            self._depth += 1
        elif char in _CLOSE:
            self._depth -= 1
        self._keep(char)
        if not self._depth and not self._in_string and self._raw[0] in '{["':
            self._end_value()

    def _keep(self, char: str) -> None:
        self._raw.append(char)
        if self._key in ARGUMENT_KEYS:
            if self._raw[0] in _OPEN:
                self._arguments.append(char)
                self.has_arguments = True
        elif self._key == "name" and len(self._raw) > MAX_NAME_CHARS:
            self.failed = True

    def _end_value(self) -> None:
        self._expect = _Expect.COMMA
        if self._key == "name":
            self.name = self._decoded()
            self.failed = not self.name
        elif self._key in ARGUMENT_KEYS and self._raw[0] == '"':
            text = self._decoded()
            self.failed = text is None
            self._arguments.append(text or "")
            self.has_arguments = True

    def _string_ends(self, char: str) -> bool:
        """Whether ``char`` is the closing quote of the string that is being read."""
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        else:
            return char == '"'
        return False

    def _decoded(self) -> str | None:
        """The string that ``_raw`` spells; None if it is none."""
        try:
            value = json.loads("".join(self._raw), strict=False)
        except ValueError:
            return None
        return value if isinstance(value, str) else None


_NEXT = {
    (_Expect.OBJECT, "{"): _Expect.KEY,
    (_Expect.KEY, '"'): _Expect.KEY_TEXT,
    (_Expect.KEY, "}"): _Expect.END,
    (_Expect.COLON, ":"): _Expect.VALUE,
    (_Expect.COMMA, ","): _Expect.KEY,
    (_Expect.COMMA, "}"): _Expect.END,
}

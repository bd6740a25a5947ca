"""Scanners for JSON that arrives in pieces: one value, and one object that is a call.

Models write raw line breaks into strings; in what leaves, control characters are escaped, so that it is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum, auto

BLANK = " \t\r\n"
_OPEN, _CLOSE = "{[", "}]"
MAX_KEY_CHARS = 256
NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")


class ValueScanner:
    """One JSON value, character by character. ``done``: it is complete; a number or a word is so with the character after."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._first = ""

    def takes(self, char: str) -> bool:
        """Whether ``char`` belongs to the value; False only after a number or a word."""
        if self._in_string:
            self._string(char)
        elif char == '"':
            self._in_string = True
        elif char in _OPEN:
            self._depth += 1
        elif char in _CLOSE and self._depth:
            self._depth -= 1
        elif not self._depth and self._first and (char in BLANK or char in ",}]"):
            self.done = True
            return False
        self._first = self._first or char
        if self._first in '{["' and not self._depth and not self._in_string:
            self.done = True
        return True

    def spelled(self, char: str) -> str:
        """A character that was just taken, as JSON has it."""
        return char if char >= " " or not self._in_string else json.dumps(char)[1:-1]

    def _string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        else:
            self._in_string = char != '"'


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
    """Reads ``{"name": …, "arguments": {…}}`` character by character; ``keyed``: ``{NAME: {…}}``.

    ``name`` is set once it was read. ``take`` returns the arguments' text that is new. ``done``: the object is complete.
    ``failed``: it is not a call. Arguments written as a JSON string are decoded and come as one piece.
    """

    def __init__(self, names: Sequence[str] = NAME_KEYS, *, keyed: bool = False) -> None:
        self.name: str | None = None
        self.failed = False
        self.has_arguments = False
        self._names = names
        self._keyed = keyed
        self._expect = _Expect.OBJECT
        self._key = ""
        self._raw: list[str] = []
        self._value = ValueScanner()
        self._arguments: list[str] = []

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
            self._value_text(char)
        elif expect is _Expect.KEY_TEXT:
            self._key_text(char)
        elif char in BLANK:
            return
        elif expect is _Expect.VALUE:
            self._begin_value(char)
        elif (expect, char) in _NEXT:
            self._expect = _NEXT[expect, char]
            self._raw = [char]
            self._value = ValueScanner()
            if self._expect is _Expect.KEY_TEXT:
                self._value.takes(char)
        else:
            self.failed = True

    def _key_text(self, char: str) -> None:
        self._raw.append(char)
        self._value.takes(char)
        if len(self._raw) > MAX_KEY_CHARS:
            self.failed = True
        elif self._value.done:
            self._key = self._decoded() or ""
            self._expect = _Expect.COLON
            if self._keyed and self.name is None:
                self.name, self._key = self._key, ARGUMENT_KEYS[0]

    def _begin_value(self, char: str) -> None:
        if self._key in ARGUMENT_KEYS and char not in _OPEN and char != '"' and char != "n":
            self.failed = True
            return
        self._raw = []
        self._value = ValueScanner()
        self._expect = _Expect.VALUE_TEXT
        self._value_text(char)

    def _value_text(self, char: str) -> None:
        if not self._value.takes(char):
            self._end_value()
            self._step(char)
            return
        self._raw.append(char)
        if self._key in ARGUMENT_KEYS and self._raw[0] in _OPEN:
            self._arguments.append(self._value.spelled(char))
            self.has_arguments = True
        elif self._key in self._names and len(self._raw) > MAX_KEY_CHARS:
            self.failed = True
        if self._value.done:
            self._end_value()

    def _end_value(self) -> None:
        self._expect = _Expect.COMMA
        if self._key in self._names:
            self.name = self._decoded()
            self.failed = not self.name
        elif self._key in ARGUMENT_KEYS and self._raw[0] == '"':
            text = self._decoded()
            self.failed = text is None
            self._arguments.append(text or "")
            self.has_arguments = True

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

"""What all readers of tool calls share: the pieces that leave, and the region of a text in which calls stand.

A region begins with a marker and holds calls with brackets, commas and wrappers between them. A call has a reader of its own
(``Call``), which the format chooses by the string that opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ferrum.text.json_scan import BLANK


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


class Call(Protocol):
    """The reader of one call. ``feed`` returns the text that is not its own once it is ``done``; ``finish``: no more text comes.

    ``failed``: what was fed is no call of a declared function; nothing of it was written.
    """

    done: bool
    failed: bool

    def feed(self, text: str, out: CallWriter) -> str: ...

    def finish(self, out: CallWriter) -> None: ...


class CallSyntax(Protocol):
    """How one call is written: a literal record of a format, which makes a reader for each call.

    ``opener`` begins a call; it belongs to the call if ``keeps_opener``. ``marks``: strings that may hold special tokens.
    """

    @property
    def opener(self) -> str: ...

    @property
    def keeps_opener(self) -> bool: ...

    @property
    def marks(self) -> tuple[str, ...]: ...

    def reader(self) -> Call: ...


class Region:
    """Calls, and between them only blanks and ``skips``; ``closers`` end it. ``done``: the rest is not its own. ``failed``: there
    was no call; without a declared function nothing is a call."""

    def __init__(self, syntax: CallSyntax, skips: tuple[str, ...], closers: tuple[str, ...]) -> None:
        self.done = False
        self.failed = False
        self._syntax = syntax
        self._skips = skips
        self._closers = closers
        self._held = ""
        self._call: Call | None = None
        self._any = False
        self._raw = ""  # of the call that is being read, until its name is out
        self._count = 0

    def feed(self, text: str, out: CallWriter) -> str:
        self._held += text
        while not self.done and not self.failed and self._advance(out):
            pass
        if not self.done and not self.failed:
            return ""
        rest, self._held = self._held, ""
        return rest

    def finish(self, out: CallWriter) -> str:
        """No more text comes: a call that is not whole counts if its name is known. What is left of one that does not, after
        others."""
        left = ""
        if self._call is not None:
            self._call.finish(out)
            left = self._raw if self._call.failed else ""
            self._any = self._any or not self._call.failed
        self.done, self.failed = self._any, not self._any
        return left

    def _advance(self, out: CallWriter) -> bool:
        """Take one thing off the held text; False when more is needed."""
        if self._call is not None:
            return self._feed_call(self._call, out)
        body = self._held.lstrip(BLANK)
        opener = self._syntax.opener
        if opener and body.startswith(opener):
            return self._begin(body, out)
        if any(mark != body and mark.startswith(body) for mark in (opener, *self._skips, *self._closers)):
            return False
        for skip in self._skips:
            if body.startswith(skip):
                self._held = body[len(skip) :]
                return True
        for closer in self._closers:
            if body.startswith(closer):
                return self._end(body[len(closer) :] if self._any else body)
        return self._end(self._held) if opener else self._begin(body, out)

    def _begin(self, body: str, out: CallWriter) -> bool:
        self._call = self._syntax.reader()
        self._raw = "" if self._syntax.keeps_opener else self._syntax.opener
        self._count = out.count
        self._held = body if self._syntax.keeps_opener else body[len(self._syntax.opener) :]
        return True

    def _end(self, rest: str) -> bool:
        self._held = rest
        self.done, self.failed = self._any, not self._any
        return False

    def _feed_call(self, call: Call, out: CallWriter) -> bool:
        self._raw += self._held
        rest = call.feed(self._held, out)
        self._held = ""
        if call.failed:
            return self._end(self._raw)
        if out.count > self._count:
            self._raw = ""
        if not call.done:
            return False
        self._held = rest
        self._call = None
        self._any = True
        return True

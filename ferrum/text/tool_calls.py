"""Finds tool calls in a model's text while it is generated: the name first, then pieces of the arguments.

The text before a marker is content, with what could be a part of a marker held back. A region that turns out to hold no call of
a declared function is given back as content, so nothing is lost. White space around calls belongs to them.
"""

from __future__ import annotations

from ferrum.text.reasoning import overlap
from ferrum.text.tool_bodies import CallArguments, CallName, CallWriter, Content, Piece, Region, Schemas
from ferrum.text.tool_formats import FORMATS, ToolFormat, find_format

__all__ = ["FORMATS", "CallArguments", "CallName", "Content", "Piece", "Schemas", "ToolCallParser", "ToolFormat", "find_format"]


class ToolCallParser:
    """Text in pieces → content and calls in pieces; the sums do not depend on how the text is cut.

    ``schemas``: declared functions and the JSON schema of their parameters. A call of any other name is content.
    """

    def __init__(self, form: ToolFormat, schemas: Schemas) -> None:
        self._form = form
        self._marks = sorted({*form.markers, *form.drops}, key=len, reverse=True)
        self._out = CallWriter(schemas)
        self._held = ""  # text that may become a marker, and white space that may precede one
        self._region: Region | None = None
        self._lead = ""  # white space and marker before the region's own text
        self._raw = ""  # the region's text so far, until it is known to hold a call
        self._begun = False  # content was sent

    @property
    def count(self) -> int:
        """Calls so far."""
        return self._out.count

    def feed(self, text: str) -> list[Piece]:
        while text:
            text = self._feed_region(self._region, text) if self._region is not None else self._feed_content(text)
        return self._drain()

    def finish(self) -> list[Piece]:
        """What was held back, after the last piece."""
        rest = ""
        while rest or self._region is not None or self._marked(final=True):
            if self._region is None:
                rest = self._feed_content(rest, final=True)
            elif rest:
                rest = self._feed_region(self._region, rest)
            else:
                rest = self._finish_region(self._region)
        if not self._out.count or self._held.strip(self._form.separators):
            self._out.content(self._held)
        self._held = ""
        return self._drain()

    def _finish_region(self, region: Region) -> str:
        """End a region; the text of one that held no call, which is looked at again without its marker."""
        left = region.finish(self._out)
        rest, self._raw, self._region = self._raw, "", None
        if not region.failed:
            self._out.content(left)
            return ""
        self._emit(self._lead)
        return rest

    def _drain(self) -> list[Piece]:
        pieces, self._out.pieces = self._out.pieces, []
        merged: list[Piece] = []
        for piece in pieces:
            last = merged[-1] if merged else None
            if isinstance(piece, CallArguments) and isinstance(last, CallArguments) and piece.index == last.index:
                merged[-1] = CallArguments(piece.index, last.text + piece.text)
            elif isinstance(piece, Content) and isinstance(last, Content):
                merged[-1] = Content(last.text + piece.text)
            else:
                merged.append(piece)
        return merged

    def _feed_region(self, region: Region, text: str) -> str:
        """Give ``text`` to the region; what remains for others."""
        count = self._out.count
        rest = region.feed(text, self._out)
        if region.failed:
            rest = self._raw + text
            self._region, self._raw = None, ""
            self._emit(self._lead)
            return rest
        self._raw = "" if self._out.count > count else self._raw + text
        if region.done:
            self._region, self._raw = None, ""
        return rest

    def _feed_content(self, text: str, *, final: bool = False) -> str:
        self._held += text
        found = self._marked(final=final)
        if found is not None:
            at, mark = found
            before, after = self._held[:at], self._held[at + len(mark) :]
            content = before.rstrip(self._form.separators)
            if content:
                self._emit(content)
            self._held = ""
            if mark in self._form.markers:
                self._lead = before[len(content) :] + mark
                self._region = Region(self._form.call, self._form.skips, self._form.closers)
                self._region.feed(mark, self._out)
            return after
        keep = self._keep()
        cut = len(self._held[: len(self._held) - keep].rstrip(self._form.separators))
        if cut:
            self._emit(self._held[:cut])
            self._held = self._held[cut:]
        return ""

    def _marked(self, *, final: bool) -> tuple[int, str] | None:
        """Where the first mark is, the longest of those that begin there; None while a longer one may come."""
        at = -1
        if not self._form.at_start:
            at = min((i for m in self._marks if (i := self._held.find(m)) >= 0), default=-1)
        elif not self._begun:
            at = len(self._held) - len(self._held.lstrip(self._form.separators))
        tail = self._held[at:] if at >= 0 else ""
        if not final and any(mark != tail and mark.startswith(tail) for mark in self._marks if tail):
            return None
        return next(((at, mark) for mark in self._marks if tail.startswith(mark)), None) if tail else None

    def _keep(self) -> int:
        """How much of the held text's end may become a mark."""
        if self._form.at_start:
            body = self._held.lstrip(self._form.separators)
            return len(self._held) if not self._begun and any(m.startswith(body) for m in self._marks) else 0
        whole = max((len(m) for m in self._marks if self._held.endswith(m)), default=0)  # a longer one may come
        return max(whole, *(overlap(self._held, m) for m in self._marks))

    def _emit(self, text: str) -> None:
        self._begun = True
        self._out.content(text)

"""Finds tool calls in a model's text while it is generated: the name first, then pieces of the arguments.

A format is an opening marker and a body. The text before a marker is content, with what could be a part of a marker
held back. A body that turns out to be no call of a declared function is given back as content, so nothing is lost.
White space around calls belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ferrum.errors import FerrumError
from ferrum.text.reasoning import overlap
from ferrum.text.tool_bodies import (
    Body,
    CallArguments,
    CallName,
    CallWriter,
    Content,
    JsonBody,
    JsonListBody,
    Piece,
    Schemas,
    XmlBody,
)

__all__ = ["FORMATS", "CallArguments", "CallName", "Content", "Piece", "Schemas", "ToolCallParser", "ToolFormat", "find_format"]
_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """``markers`` open a call; ``at_start``: only as the first thing in the answer. ``tokens``: markers that may be special
    tokens and must stay visible. ``separators`` between two calls are dropped."""

    markers: tuple[str, ...]
    tokens: tuple[str, ...]
    body: str
    at_start: bool = False
    separators: str = _BLANK


FORMATS: Mapping[str, ToolFormat] = {
    "hermes": ToolFormat(("<tool_call>",), ("<tool_call>", "</tool_call>"), "json"),
    "qwen3-coder": ToolFormat(("<tool_call>",), ("<tool_call>", "</tool_call>"), "xml"),
    "llama3": ToolFormat(("<|python_tag|>", "{"), ("<|python_tag|>",), "object", at_start=True, separators=_BLANK + ";"),
    "mistral": ToolFormat(("[TOOL_CALLS]",), ("[TOOL_CALLS]", "[ARGS]"), "list"),
}


def find_format(name: str) -> ToolFormat | None:
    """The format that a pack names; None for a model without tools. Raises FerrumError for an unknown name."""
    if not name:
        return None
    if name not in FORMATS:
        raise FerrumError("unknown-tool-format", f"unknown tool format {name}", "manifest.json", "upgrade ferrum")
    return FORMATS[name]


def _make_body(kind: str) -> Body:
    if kind == "json":
        return JsonBody("</tool_call>")
    if kind == "xml":
        return XmlBody("</tool_call>")
    return JsonListBody() if kind == "list" else JsonBody()


class ToolCallParser:
    """Text in pieces → content and calls in pieces; the sums do not depend on how the text is cut.

    ``schemas``: declared functions and the JSON schema of their parameters. A call of any other name is content.
    """

    def __init__(self, form: ToolFormat, schemas: Schemas) -> None:
        self._form = form
        self._out = CallWriter(schemas)
        self._held = ""  # text that may become a marker, and white space that may precede one
        self._body: Body | None = None
        self._lead = ""  # white space and marker before the body
        self._raw = ""  # the body's text so far, until the call is known to be one
        self._begun = False  # content was sent

    @property
    def count(self) -> int:
        """Calls so far."""
        return self._out.count

    def feed(self, text: str) -> list[Piece]:
        while text:
            text = self._feed_body(text) if self._body is not None else self._feed_content(text)
        return self._drain()

    def finish(self) -> list[Piece]:
        """What was held back, after the last piece."""
        while self._body is not None:  # what is given back may open another one
            self._body.finish(self._out)
            if self._body.failed:
                self._give_back()
            else:
                self._end_body()
        if not self._out.count or self._held.strip(self._form.separators):
            self._out.content(self._held)
        self._held = ""
        return self._drain()

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

    def _feed_body(self, text: str) -> str:
        """Give ``text`` to the body; what remains for others."""
        assert self._body is not None
        count = self._out.count
        rest = self._body.feed(text, self._out)
        if self._body.failed:
            rest = self._raw + text
            self._end_body()
            self._emit(self._lead)
            return rest
        self._raw = "" if self._out.count > count else self._raw + text
        if self._body.done:
            self._end_body()
        return rest

    def _give_back(self) -> None:
        """The body was no call: its marker is content, what follows is looked at again."""
        rest = self._raw
        self._end_body()
        self._emit(self._lead)
        while rest:
            rest = self._feed_body(rest) if self._body is not None else self._feed_content(rest)

    def _end_body(self) -> None:
        self._body = None
        self._raw = ""

    def _feed_content(self, text: str) -> str:
        self._held += text
        at, marker = self._find_marker()
        if marker:
            before, after = self._held[:at], self._held[at + len(marker) :]
            content = before.rstrip(self._form.separators)
            if content:
                self._emit(content)
            self._body = _make_body(self._form.body)
            self._held = ""
            self._lead = before[len(content) :]
            if marker == "{":
                return marker + after
            self._lead += marker
            return after
        keep = self._keep()
        cut = len(self._held[: len(self._held) - keep].rstrip(self._form.separators))
        if cut:
            self._emit(self._held[:cut])
            self._held = self._held[cut:]
        return ""

    def _find_marker(self) -> tuple[int, str]:
        if not self._form.at_start:
            found = [(at, m) for m in self._form.markers if (at := self._held.find(m)) >= 0]
            return min(found, default=(-1, ""))
        body = self._held.lstrip(self._form.separators)
        for marker in self._form.markers if not self._begun else ():
            if body.startswith(marker):
                return len(self._held) - len(body), marker
        return -1, ""

    def _keep(self) -> int:
        """How much of the held text's end may become a marker."""
        if not self._form.at_start:
            return max(overlap(self._held, m) for m in self._form.markers)
        body = self._held.lstrip(self._form.separators)
        return len(self._held) if not self._begun and any(m.startswith(body) for m in self._form.markers) else 0

    def _emit(self, text: str) -> None:
        self._begun = True
        self._out.content(text)

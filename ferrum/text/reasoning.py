"""Separates what a model thinks from what it says.

A reasoning model writes ``<think>`` … ``</think>`` (or other tags, as the pack says) before its answer; some templates
already end the prompt with the opening tag. Line breaks next to the tags belong to neither part.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

_BLANK = " \t\r\n"


class Split(NamedTuple):
    """New text of both kinds; either may be empty."""

    reasoning: str
    content: str


class _State(Enum):
    BEGIN = auto()  # nothing but white space and maybe a part of the opening tag so far
    OPENED = auto()  # between the opening tag and the first character of the reasoning
    THINKING = auto()
    CLOSED = auto()  # between the closing tag and the first character of the content
    CONTENT = auto()


class ReasoningSplitter:
    """Text in pieces → ``Split`` in pieces; the sums do not depend on how the text is cut.

    ``opened``: the prompt already ends with the opening tag. With empty tags everything is content.
    """

    def __init__(self, start: str = "<think>", end: str = "</think>", *, opened: bool = False) -> None:
        self._start = start
        self._end = end
        self._held = ""
        self._state = _State.CONTENT if not start or not end else _State.OPENED if opened else _State.BEGIN

    def feed(self, text: str) -> Split:
        if self._state is _State.CONTENT:
            return Split("", text)
        self._held += text
        reasoning = ""
        for _ in _State:  # each state can follow once
            reasoning += self._advance()
        return Split(reasoning, self._content())

    def _content(self) -> str:
        content = ""
        if self._state is _State.CONTENT:
            content, self._held = self._held, ""
        return content

    def finish(self) -> Split:
        """What was held back, after the last piece."""
        held, self._held = self._held, ""
        if self._state in (_State.OPENED, _State.THINKING):
            return Split(held.rstrip(_BLANK), "")
        return Split("", "" if self._state is _State.CLOSED else held)

    def _advance(self) -> str:
        """Do what the held text decides; reasoning that may leave."""
        if self._state is _State.BEGIN:
            self._begin()
        elif self._state is _State.OPENED:
            self._held = self._held.lstrip(_BLANK)
            if self._held:
                self._state = _State.THINKING
        elif self._state is _State.THINKING:
            return self._think()
        elif self._state is _State.CLOSED:
            self._held = self._held.lstrip(_BLANK)
            if self._held:
                self._state = _State.CONTENT
        return ""

    def _begin(self) -> None:
        body = self._held.lstrip(_BLANK)
        if body.startswith(self._start):
            self._held = body[len(self._start) :]
            self._state = _State.OPENED
        elif not self._start.startswith(body):
            self._state = _State.CONTENT

    def _think(self) -> str:
        at = self._held.find(self._end)
        if at >= 0:
            reasoning = self._held[:at].rstrip(_BLANK)
            self._held = self._held[at + len(self._end) :]
            self._state = _State.CLOSED
            return reasoning
        keep = overlap(self._held, self._end)
        cut = len(self._held[: len(self._held) - keep].rstrip(_BLANK))
        reasoning, self._held = self._held[:cut], self._held[cut:]
        return reasoning


def overlap(text: str, tag: str) -> int:
    """Length of the longest proper prefix of ``tag`` that ``text`` ends with."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


def prompt_opens(prompt: str, start: str) -> bool:
    """Whether a rendered prompt leaves the model inside its reasoning."""
    return bool(start) and prompt.rstrip(_BLANK).endswith(start)

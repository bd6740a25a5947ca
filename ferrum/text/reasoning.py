"""Separates what a model thinks from what it says.

A reasoning model writes ``<think>`` … ``</think>`` (or other marks, as the pack says) before its answer; some templates already
end the prompt with the opening mark, some with both, and some models write the closing one only. Line breaks next to the marks
belong to neither part.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

_BLANK = " \t\r\n"

# marks that models are trained on; a template that knows the second has a model that writes both
MARKS = (
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("[THINK]", "[/THINK]"),
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
)
_HARMONY = "<|channel|>analysis"
SHARED_ENDS = frozenset({"<|end|>"})  # these end other things too: without an opening mark they say nothing


def find_reasoning(source: str) -> tuple[str, str]:
    """The marks of a model's reasoning, by its chat template; empty when it has none."""
    if _HARMONY in source:
        return MARKS[0]
    found = next(((start, end) for start, end in MARKS[1:] if end in source), ("", ""))
    return ("<think>", "</think>") if not found[0] and "enable_thinking" in source else found


class Opening(Enum):
    """Where the prompt leaves the model."""

    UNKNOWN = auto()  # it may open its reasoning, or only close it, or have none
    OPENED = auto()
    CLOSED = auto()  # the prompt holds an empty reasoning: there will be none


def opening(prompt: str, start: str, end: str) -> Opening:
    """What a rendered prompt says of the reasoning that follows it."""
    tail = prompt.rstrip(_BLANK)
    if start and tail.endswith(start):
        return Opening.OPENED
    return Opening.CLOSED if end and tail.endswith(end) else Opening.UNKNOWN


class Split(NamedTuple):
    """New text of both kinds; either may be empty. ``closes``: all content before this was reasoning too, as only now is seen."""

    reasoning: str
    content: str
    closes: bool = False


class _State(Enum):
    BEGIN = auto()  # nothing but white space and maybe a part of the opening mark so far
    OPENED = auto()  # between the opening mark and the first character of the reasoning
    THINKING = auto()
    UNOPENED = auto()  # content, unless the closing mark comes
    CLOSED = auto()  # between the closing mark and the first character of the content
    CONTENT = auto()


_FIRST = {Opening.UNKNOWN: _State.BEGIN, Opening.OPENED: _State.OPENED, Opening.CLOSED: _State.CLOSED}


class ReasoningSplitter:
    """Text in pieces → ``Split`` in pieces; the sums do not depend on how the text is cut. With empty marks all is content."""

    def __init__(self, start: str = "<think>", end: str = "</think>", begins: Opening = Opening.UNKNOWN) -> None:
        self._start = start
        self._end = end
        self._held = ""
        self._state = _FIRST[begins] if start and end else _State.CONTENT

    @property
    def may_close(self) -> bool:
        """Whether the content so far may still turn out to be reasoning."""
        return self._state is _State.UNOPENED

    @property
    def inside(self) -> bool:
        """Whether the reasoning is open."""
        return self._state in (_State.OPENED, _State.THINKING)

    def feed(self, text: str) -> Split:
        if self._state is _State.CONTENT:
            return Split("", text)
        self._held += text
        reasoning, content, closes = "", "", False
        for _ in _State:  # each state can follow once
            was, said, now = self._state, self._advance(), self._state
            closes = closes or (was is _State.UNOPENED and now is _State.CLOSED)
            if was is _State.UNOPENED and not closes:
                content += said
            else:
                reasoning += said
        return Split(reasoning, content + self._rest(), closes)

    def _rest(self) -> str:
        rest = ""
        if self._state is _State.CONTENT:
            rest, self._held = self._held, ""
        return rest

    def finish(self) -> Split:
        """What was held back, after the last piece."""
        held, self._held = self._held, ""
        if self._state in (_State.OPENED, _State.THINKING):
            return Split(held.rstrip(_BLANK), "")
        return Split("", "" if self._state is _State.CLOSED else held)

    def _advance(self) -> str:
        """Do what the held text decides; text that may leave."""
        if self._state is _State.BEGIN:
            self._begin()
        elif self._state in (_State.OPENED, _State.CLOSED):
            self._held = self._held.lstrip(_BLANK)
            if self._held:
                self._state = _State.THINKING if self._state is _State.OPENED else _State.CONTENT
        elif self._state in (_State.THINKING, _State.UNOPENED):
            return self._until_end()
        return ""

    def _begin(self) -> None:
        body = self._held.lstrip(_BLANK)
        if body.startswith(self._start):
            self._held = body[len(self._start) :]
            self._state = _State.OPENED
        elif not self._start.startswith(body):
            self._state = _State.CONTENT if self._end in SHARED_ENDS else _State.UNOPENED

    def _until_end(self) -> str:
        at = self._held.find(self._end)
        opened = self._held.find(self._start) if self._state is _State.UNOPENED else -1
        if 0 <= opened < at or (opened >= 0 > at):  # the text speaks of the marks; nothing was thought
            self._state = _State.CONTENT
            return ""
        if at >= 0:
            before = self._held[:at].rstrip(_BLANK)
            self._held = self._held[at + len(self._end) :]
            self._state = _State.CLOSED
            return before
        keep = max(overlap(self._held, self._end), overlap(self._held, self._start) if self._state is _State.UNOPENED else 0)
        cut = len(self._held[: len(self._held) - keep].rstrip(_BLANK))
        before, self._held = self._held[:cut], self._held[cut:]
        return before


def overlap(text: str, tag: str) -> int:
    """Length of the longest proper prefix of ``tag`` that ``text`` ends with."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0

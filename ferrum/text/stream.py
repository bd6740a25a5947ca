"""Tokens to text as they come: never half a code point, never a part of a stop string.

The text that leaves is the same however the tokens are grouped: a stop string ends it where the first stop string is
complete, and if several end there the longest one is cut off.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ferrum.text.tokenizer import Tokenizer

_utf8 = codecs.getincrementaldecoder("utf-8")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_BYTES = 4  # of one code point
CONTEXT_TOKENS = 32
MAX_HELD_TOKENS = 8  # a code point has at most 4 byte tokens; more means that the bytes are no UTF-8


class StreamDecoder:
    """Token ids of one sequence, one by one, to text.

    Special tokens are left out unless they are in ``visible``. ``context``: the tokens before the first one (the prompt): the
    first token of a text may lose its leading space, and a prompt may end inside a character, which then comes whole.
    """

    def __init__(self, tokenizer: Tokenizer, *, visible: frozenset[int] = frozenset(), context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - visible
        self._bytes = _utf8("replace") if tokenizer.byte_level else None
        before = [i for i in context[-CONTEXT_TOKENS:] if i not in self._hidden]
        begun = _begun_character(b"".join(map(tokenizer.token_bytes, before[-MAX_BYTES:])))
        self._ids: list[int] = []
        self._read = 0  # the text of ids[:read] has left; it is the context of the rest
        if self._bytes is not None:
            self._bytes.decode(begun)
        else:
            whole = len(before) - len(begun)  # such tokens hold one byte each
            anchor = self._anchor(before[:whole])
            self._ids = anchor + before[whole:]
            self._read = len(anchor)

    def _anchor(self, ids: list[int]) -> list[int]:
        """The last tokens of ``ids`` that are whole characters by themselves. A context that began inside a character would
        spoil all bytes after it: the library gives up on every run of byte tokens that is not UTF-8 as a whole."""
        empty: list[int] = []
        for end in range(len(ids), 0, -1):
            for begin in range(end - 1, max(end - 1 - MAX_BYTES, -1), -1):
                text = self._tokenizer.decode_window(ids[begin:end])
                if text and REPLACEMENT not in text:
                    return ids[begin:end]
                empty = empty or ([] if text else ids[begin:end])
        return empty  # such as a lone space, which a decoder may take away

    def feed(self, token: int) -> str:
        """The text that ``token`` completes, often empty."""
        if token in self._hidden:
            return ""
        if self._bytes is not None:
            return self._bytes.decode(self._tokenizer.token_bytes(token))
        self._ids.append(token)
        return self._window(hold=len(self._ids) - self._read < MAX_HELD_TOKENS)

    def finish(self) -> str:
        """What was held back; U+FFFD for bytes that never became a code point."""
        if self._bytes is not None:
            return self._bytes.decode(b"", True)
        return self._window(hold=False)

    def _window(self, hold: bool) -> str:
        known = self._tokenizer.decode_window(self._ids[: self._read])
        text = self._tokenizer.decode_window(self._ids)
        if len(text) <= len(known) or (hold and text.endswith(REPLACEMENT)):
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return text[len(known) :]


def _begun_character(raw: bytes) -> bytes:
    """The bytes at the end of ``raw`` that begin a character and do not complete it."""
    decoder = _utf8("replace")
    decoder.decode(raw)
    return decoder.getstate()[0]


class StopMatcher:
    """Finds the first of several strings in a text that comes in pieces (Knuth, Morris, Pratt 1977, one automaton each)."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._failures = [_failure_table(s) for s in self._stops]
        self._states = [0] * len(self._stops)
        self._held = ""
        self.stopped = False
        self.matched = ""  # the stop string that was found

    def feed(self, text: str) -> str:
        """What may leave; empty once ``stopped``."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        for at in range(len(self._held), len(buffer)):
            longest = self._advance(buffer[at])
            if longest:
                self.stopped = True
                self._held = ""
                self.matched = buffer[at + 1 - longest : at + 1]
                return buffer[: at + 1 - longest]
        keep = max(self._states)
        cut = len(buffer) - keep
        self._held = buffer[cut:]
        return buffer[:cut]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _advance(self, char: str) -> int:
        """Take one character; the length of the longest stop string that it completes, else 0."""
        longest = 0
        for i, stop in enumerate(self._stops):
            state, failure = self._states[i], self._failures[i]
            while state and stop[state] != char:
                state = failure[state - 1]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                longest = max(longest, state)
                state = 0
            self._states[i] = state
        return longest


def _failure_table(pattern: str) -> list[int]:
    """For each prefix of ``pattern`` the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        if pattern[i] == pattern[length]:
            length += 1
        table[i] = length
    return table


class TextStream:
    """Tokens in, text out, with stop strings: what one choice of a request sends."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        visible: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
    ) -> None:
        self._decoder = StreamDecoder(tokenizer, visible=visible, context=context)
        self._matcher = StopMatcher(stops)
        self.decoded = 0  # characters decoded so far, those held back included

    @property
    def stopped(self) -> bool:
        """A stop string was found: nothing more will come and the sequence can be ended."""
        return self._matcher.stopped

    @property
    def matched_stop(self) -> str:
        return self._matcher.matched

    def feed(self, token: int) -> str:
        return self._take(self._decoder.feed(token))

    def finish(self) -> str:
        """The rest, after the last token."""
        return self._take(self._decoder.finish()) + self._matcher.finish()

    def _take(self, text: str) -> str:
        self.decoded += len(text)
        return self._matcher.feed(text) if text else ""

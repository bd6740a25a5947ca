"""One choice of an answer: tokens in, pieces of text, reasoning, tool calls and log-probabilities out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from ferrum.engine.messages import TokenEvent
from ferrum.text.reasoning import ReasoningSplitter
from ferrum.text.stream import TextStream
from ferrum.text.tokenizer import Tokenizer
from ferrum.text.tool_calls import CallArguments, CallName, Content, Piece, Schemas, ToolCallParser, ToolFormat


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the tokens of a request become an answer. ``context``: the prompt's last tokens, for continued text."""

    stops: tuple[str, ...] = ()
    logprobs: bool = False
    reasoning: tuple[str, str] = ("", "")
    reasoning_opened: bool = False
    tool_format: ToolFormat | None = None
    schemas: Schemas = field(default_factory=dict)
    parallel_calls: bool = True
    visible: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log-probability; ``offset``: characters of the choice's text before it."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class CallPiece:
    """``id`` and ``name`` come with the first piece of a call only."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """What is new in a choice."""

    index: int
    content: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: str = ""  # with the finish reason: the stop string that ended it

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls or self.finish_reason)


class Choice:
    """State of one choice. ``index`` is its number in the answer."""

    def __init__(self, index: int, tokenizer: Tokenizer, options: TextOptions, context: Sequence[int] = ()) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._options = options
        self._stream = TextStream(tokenizer, options.stops, visible=options.visible, context=context)
        start, end = options.reasoning
        self._reasoning = ReasoningSplitter(start, end, opened=options.reasoning_opened) if start else None
        self._parser = ToolCallParser(options.tool_format, options.schemas) if options.tool_format else None
        self._scores: list[ScoredToken] = []  # of text that has not left yet
        self._released = 0

    @property
    def stopped_by_text(self) -> bool:
        """A stop string ended it, so the engine does not know yet."""
        return self._stream.stopped or self._one_call_done

    @property
    def _one_call_done(self) -> bool:
        return not self._options.parallel_calls and self._parser is not None and self._parser.count > 1

    def feed(self, event: TokenEvent) -> Delta:
        """Take one token. The delta has a finish reason when it was the last one."""
        delta = Delta(self.index)
        self.num_tokens += 1
        if event.finish_reason != "stop":
            if self._options.logprobs and event.logprob is not None:
                self._scores.append(ScoredToken(event.token, event.logprob, event.top, self._stream.decoded))
            self._take(self._stream.feed(event.token), delta)
        if self.stopped_by_text:
            self._finish(delta, "stop")
        elif event.finish_reason:
            self._take(self._stream.finish(), delta)
            self._finish(delta, "stop" if self._stream.stopped else event.finish_reason)
        if delta:
            delta.scores, self._scores = self._scores, []
        return delta

    def _take(self, text: str, delta: Delta) -> None:
        self._released += len(text)
        if self._reasoning is None:
            self._take_content(text, delta)
        elif text:
            split = self._reasoning.feed(text)
            delta.reasoning += split.reasoning
            self._take_content(split.content, delta)

    def _take_content(self, text: str, delta: Delta) -> None:
        if self._parser is None:
            delta.content += text
        elif text:
            self._take_pieces(self._parser.feed(text), delta)

    def _take_pieces(self, pieces: list[Piece], delta: Delta) -> None:
        for piece in pieces:
            if isinstance(piece, Content):
                delta.content += piece.text
            elif not self._options.parallel_calls and piece.index > 0:
                continue
            elif isinstance(piece, CallName):
                delta.calls.append(CallPiece(piece.index, f"call_{secrets.token_hex(12)}", piece.name))
            elif isinstance(piece, CallArguments):
                delta.calls.append(CallPiece(piece.index, arguments=piece.text))

    def _finish(self, delta: Delta, reason: str) -> None:
        if self._reasoning is not None:
            split = self._reasoning.finish()
            delta.reasoning += split.reasoning
            self._take_content(split.content, delta)
        if self._parser is not None:
            self._take_pieces(self._parser.finish(), delta)
            if self._parser.count and reason == "stop":
                reason = "tool_calls"
        if self._stream.stopped:
            self._scores = [s for s in self._scores if s.offset < self._released]
        self.finish_reason = delta.finish_reason = reason
        delta.matched_stop = self._stream.matched_stop

"""One choice of an answer: tokens in, pieces of text, reasoning, tool calls and log-probabilities out."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import StringIO

from ferrum.engine.reports import TokenEvent
from ferrum.text.conversation import ID_CHARS
from ferrum.text.reasoning import Opening, ReasoningSplitter
from ferrum.text.stream import TextStream
from ferrum.text.tokenizer import Tokenizer
from ferrum.text.tool_calls import CallArguments, CallName, Content, Piece, Schemas, ToolCallParser, ToolFormat

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the tokens of a request become an answer. ``context``: the prompt's last tokens, for continued text."""

    stops: tuple[str, ...] = ()
    logprobs: bool = False
    reasoning: tuple[str, str] = ("", "")
    begins: Opening = Opening.UNKNOWN
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
    """What is new in a choice. ``unopened``: all that the model thought, when only now is known that everything before this was
    that. A stream goes on with ``reasoning``; a whole answer forgets earlier deltas, calls too, and has ``unopened`` instead."""

    index: int
    unopened: str | None = None
    content: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: str = ""  # with the finish reason: the stop string that ended it

    def add_arguments(self, index: int, text: str) -> None:
        """To the entry of the same call, if there is one: clients take one entry a call and chunk."""
        if self.calls and self.calls[-1].index == index:
            self.calls[-1] = replace(self.calls[-1], arguments=self.calls[-1].arguments + text)
        else:
            self.calls.append(CallPiece(index, arguments=text))

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls or self.finish_reason or self.unopened is not None)


def whole_reason(reason: str, calls: bool) -> str:
    """The finish reason of a whole answer: the calls that a stream was told of may have been reasoning."""
    return "stop" if reason == "tool_calls" and not calls else reason


def _call_id() -> str:
    """Nine letters and digits: Mistral's templates take no other, and the rest take any."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARS))


class Choice:
    """State of one choice. ``index`` is its number in the answer."""

    def __init__(self, index: int, tokenizer: Tokenizer, options: TextOptions, context: Sequence[int] = ()) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_reasoning_tokens = 0  # the marks around it included
        self.finish_reason: str | None = None
        self._options = options
        self._stream = TextStream(tokenizer, options.stops, visible=options.visible, context=context)
        start, end = options.reasoning
        self._reasoning = ReasoningSplitter(start, end, options.begins) if start else None
        self._unopened = StringIO()  # content that a closing mark would make reasoning
        self._parser = self._new_parser()
        self._calls = 0
        self._first_call = 0  # of the parser
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
        text = ""
        if event.finish_reason != "stop":
            if self._options.logprobs and event.logprob is not None:
                self._scores.append(ScoredToken(event.token, event.logprob, event.top, self._stream.decoded))
            text = self._stream.feed(event.token)
        if event.finish_reason:
            text += self._stream.finish()
        before = self._reasoning is not None and self._reasoning.inside
        self._take(text, delta)
        if self._reasoning is not None and (before or self._reasoning.inside):
            self.num_reasoning_tokens = min(self.num_tokens, self.num_reasoning_tokens + 1)
        if self.stopped_by_text:
            self._finish(delta, "stop")
        elif event.finish_reason:
            self._finish(delta, event.finish_reason)
        if delta:
            delta.scores, self._scores = self._scores, []
        return delta

    def _take(self, text: str, delta: Delta) -> None:
        self._released += len(text)
        if self._reasoning is None:
            self._take_content(text, delta)
        elif text:
            split = self._reasoning.feed(text)
            if split.closes:
                self.num_reasoning_tokens = self.num_tokens
                self._close_unopened(split.reasoning, delta)
            elif self._reasoning.may_close:
                self._unopened.write(split.content)
            delta.reasoning += split.reasoning
            self._take_content(split.content, delta)

    def _close_unopened(self, last: str, delta: Delta) -> None:
        """What looked like content and calls was reasoning that the model closes, with ``last``, without having opened it. What
        has left stays as it is in a stream; a whole answer is put right."""
        delta.unopened = self._unopened.getvalue() + last
        if self._parser is not None:
            delta.reasoning += "".join(piece.text for piece in self._parser.finish() if isinstance(piece, Content))
            self._parser = self._new_parser()
            self._first_call = self._calls

    def _new_parser(self) -> ToolCallParser | None:
        options = self._options
        return ToolCallParser(options.tool_format, options.schemas) if options.tool_format else None

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
                delta.calls.append(CallPiece(self._first_call + piece.index, _call_id(), piece.name))
                self._calls += 1
            elif isinstance(piece, CallArguments):
                delta.add_arguments(self._first_call + piece.index, piece.text)

    def _finish(self, delta: Delta, reason: str) -> None:
        if self._reasoning is not None:
            split = self._reasoning.finish()
            delta.reasoning += split.reasoning
            self._take_content(split.content, delta)
        if self._parser is not None:
            self._take_pieces(self._parser.finish(), delta)
            if self._calls and reason == "stop":
                reason = "tool_calls"
        if self._stream.stopped:
            self._scores = [s for s in self._scores if s.offset < self._released]
        self.finish_reason = delta.finish_reason = reason
        delta.matched_stop = self._stream.matched_stop

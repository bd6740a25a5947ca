"""All of a choice, kept until its answer is whole, in little more memory than its text."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO

from ferrum.server.choice import Delta, ScoredToken, whole_reason


@dataclass
class Scores:
    """Scored tokens as numbers in arrays: 12 bytes for each alternative instead of about 200 as objects."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("d"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("H"))
    top_tokens: array[int] = field(default_factory=lambda: array("i"))
    top_logprobs: array[float] = field(default_factory=lambda: array("d"))

    def add(self, score: ScoredToken) -> None:
        self.tokens.append(score.token)
        self.logprobs.append(score.logprob)
        self.offsets.append(score.offset)
        self.counts.append(len(score.top))
        for token, logprob in score.top:
            self.top_tokens.append(token)
            self.top_logprobs.append(logprob)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[ScoredToken]:
        at = 0
        for token, logprob, offset, count in zip(self.tokens, self.logprobs, self.offsets, self.counts, strict=True):
            top = zip(self.top_tokens[at : at + count], self.top_logprobs[at : at + count], strict=True)
            yield ScoredToken(token, logprob, tuple(top), offset)
            at += count


@dataclass
class GatheredCall:
    id: str
    name: str
    arguments: StringIO = field(default_factory=StringIO)


class Gathered:
    """One choice. ``calls`` are in the order of their making."""

    def __init__(self) -> None:
        self._content = StringIO()
        self._reasoning = StringIO()
        self.calls: list[GatheredCall] = []
        self.scores = Scores()
        self.finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        if delta.unopened is not None:
            self._content, self._reasoning, self.calls = StringIO(), StringIO(), []
        self._content.write(delta.content)
        self._reasoning.write(delta.reasoning if delta.unopened is None else delta.unopened)
        for piece in delta.calls:
            if piece.id:
                self.calls.append(GatheredCall(piece.id, piece.name))
            self.calls[-1].arguments.write(piece.arguments)
        for score in delta.scores:
            self.scores.add(score)
        if delta.finish_reason:
            self.finish_reason = whole_reason(delta.finish_reason, bool(self.calls))

    @property
    def content(self) -> str:
        return self._content.getvalue()

    @property
    def reasoning(self) -> str:
        return self._reasoning.getvalue()

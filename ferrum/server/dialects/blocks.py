"""An answer as a row of blocks (reasoning, text, calls), each of which opens, grows and closes: what newer APIs stream."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Literal, TypeAlias

from ferrum.server.choice import Delta, ScoredToken, whole_reason

Kind: TypeAlias = Literal["reasoning", "text", "call"]


@dataclass
class Block:
    """``text``: of a call, its arguments as JSON. ``index``: its place in the answer."""

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    scores: list[ScoredToken] = field(default_factory=list)  # of a text, where they were asked for
    _text: StringIO = field(default_factory=StringIO)

    @property
    def text(self) -> str:
        return self._text.getvalue()


@dataclass(frozen=True)
class Opened:
    block: Block


@dataclass(frozen=True)
class Grew:
    block: Block
    text: str
    scores: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Closed:
    """``reason``: why the answer ended, when this is its last block."""

    block: Block
    reason: str = ""


BlockChange: TypeAlias = Opened | Grew | Closed


class ContentBlocks:
    """The blocks of one choice, made from its deltas. A choice without any text ends with an empty block of text."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.finish_reason = ""
        self.matched_stop = ""
        self._open: Block | None = None

    def add(self, delta: Delta) -> None:
        """Take ``delta`` of a whole answer, which may still be put right: what looked like text and calls was reasoning."""
        if delta.unopened is not None:
            self.all, self._open = [], None
            delta = replace(delta, reasoning=delta.unopened)
        self.feed(delta)
        self.finish_reason = whole_reason(self.finish_reason, any(b.kind == "call" for b in self.all))

    def feed(self, delta: Delta) -> list[BlockChange]:
        """The steps that ``delta`` makes in a stream."""
        steps: list[BlockChange] = []
        if delta.reasoning:
            self._grow("reasoning", delta.reasoning, steps)
        if delta.content:
            self._grow("text", delta.content, steps, tuple(delta.scores))
        for piece in delta.calls:
            if piece.id:
                self._begin(Block("call", len(self.all), piece.id, piece.name), steps)
            if piece.arguments:
                self._grow("call", piece.arguments, steps)
        if delta.finish_reason:
            self.finish_reason, self.matched_stop = delta.finish_reason, delta.matched_stop
            if not any(b.kind != "reasoning" for b in self.all):
                self._begin(Block("text", len(self.all)), steps)
            self._close(steps, delta.finish_reason)
        return steps

    def _grow(self, kind: Kind, text: str, steps: list[BlockChange], scores: tuple[ScoredToken, ...] = ()) -> None:
        if self._open is None or self._open.kind != kind:
            self._begin(Block(kind, len(self.all)), steps)
        assert self._open is not None
        self._open._text.write(text)
        self._open.scores += scores
        steps.append(Grew(self._open, text, scores))

    def _begin(self, block: Block, steps: list[BlockChange]) -> None:
        self._close(steps)
        self.all.append(block)
        self._open = block
        steps.append(Opened(block))

    def _close(self, steps: list[BlockChange], reason: str = "") -> None:
        if self._open is not None:
            steps.append(Closed(self._open, reason))
            self._open = None

"""Grammars for the answers of one model: its tokenizer, the marks of its reasoning, its way of calling tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ferrum.errors import FerrumError
from ferrum.pack.schema import TextRecord
from ferrum.structured.call_writing import WRITINGS
from ferrum.structured.calls import Function, calls, text_and_calls
from ferrum.structured.grammar import Frame, Parts, alternatives, content, plan
from ferrum.structured.lark import Literals
from ferrum.structured.process import GrammarProcess
from ferrum.structured.wish import Structured
from ferrum.text.reasoning import Opening, opening
from ferrum.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The functions that an answer ``may`` call or ``must``, once or ``several`` times. ``where``: the field that asks for it."""

    functions: tuple[Function, ...]
    choice: Literal["may", "must"]
    several: bool = True
    where: str = "tools"


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors that name no field are about ``where``."""
    try:
        yield
    except FerrumError as error:
        named = where if error.where == "structured" else error.where
        raise FerrumError(error.code, error.what, named, error.next_step) from None


class ModelGrammars:
    """Makes grammars; errors name the fields of whoever asks. Blocks; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, text: TextRecord, vocab_size: int) -> None:
        special = {tokenizer.added[i]: i for i in sorted(tokenizer.special_ids) if i < vocab_size}
        self._text = text
        self._literals = Literals(special, text.eos_token_ids)
        self._process = GrammarProcess(special)

    def content(self, wish: Structured, where: str, prompt: str = "") -> str:
        """The grammar of an answer to ``prompt`` (its last words are enough; empty: it begins at once). Raises FerrumError."""
        return self.answer(prompt, wish=wish, where=where)

    def answer(self, prompt: str, *, wish: Structured | None = None, where: str = "", tools: Tools | None = None) -> str:
        """As ``content``, of an answer that is one of several things."""
        parts, frame, form = Parts(self._literals), self._frame(prompt), self._text.tool_format
        options: list[str] = []
        if wish is not None and (tools is None or tools.choice == "may"):
            with _named(where):
                options.append(content(parts, wish, where, frame))
        if tools is not None:
            with _named(tools.where):
                free = tools.choice == "may" and wish is None
                write = text_and_calls if free else calls
                options.append(write(parts, form, tools.functions, several=tools.several))
        with _named(where or (tools.where if tools else "")):
            return self._process.make(plan(parts, alternatives(options), frame))

    def close(self) -> None:
        self._process.close()

    def _frame(self, prompt: str) -> Frame:
        text = self._text
        start, end = text.reasoning_start, text.reasoning_end
        writing = WRITINGS.get(text.tool_format)
        turn, answer = (writing.turn, writing.answer) if writing is not None else ("", "")
        if not prompt:
            return Frame()
        begins = opening(prompt, start, end) if start and end else Opening.CLOSED
        return Frame(reasoning=(start, end), begins=begins, turn=turn, answer=answer)

"""Pieces of Lark grammars as llguidance reads them, over one model's special tokens.

A special token is never matched by text: where a literal holds one, the grammar names it by its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

WHITE = "/[ \\t\\r\\n]{1,8}/"
TEXT = "/(?s:.)*/"


class Literals:
    """``special``: special tokens by their text. ``ends``: ids of those that end an answer; at a grammar's end they are left out,
    since the end says them."""

    def __init__(self, special: Mapping[str, int], ends: Collection[int] = ()) -> None:
        self._special = dict(special)
        self._ends = frozenset(ends)
        longest = sorted(filter(None, self._special), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if longest else None

    def pieces(self, text: str) -> list[str]:
        """What stands for ``text``, in order: quoted texts and special tokens."""
        parts = self._split.split(text) if self._split is not None else [text]
        return [f"<[{self._special[p]}]>" if p in self._special else quoted(p) for p in parts if p]

    def exactly(self, text: str, *, last: bool = False) -> str:
        """``text`` and nothing else; empty for no text. ``last``: nothing but the end follows."""
        pieces = self.pieces(text)
        if last and pieces and any(pieces[-1] == f"<[{end}]>" for end in self._ends):
            del pieces[-1]
        return " ".join(pieces)

    def until(self, mark: str, rule: str) -> tuple[str, list[str]]:
        """Any text up to the first ``mark``, which is not empty, and with it: the expression, and the rules that it needs, named
        after ``rule``."""
        first, *rest = self.pieces(mark)
        if first.startswith("<["):
            return " ".join([f"{rule}_text", first, *rest]), [f"{rule}_text: {TEXT}"]
        return " ".join([f"{rule}_text", *rest]), [f"{rule}_text[lazy]: {TEXT} {first}"]


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def joined(*parts: str) -> str:
    """A sequence, without what is empty."""
    return " ".join(part for part in parts if part) or '""'

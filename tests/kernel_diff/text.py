"""Sources and assembly as pieces that name each other, so that a function is compared with all that it uses and with no name.

A ``Unit`` is a list of pieces (a function, a type, a macro, a table), each with the names that it defines. ``closure`` gives a
function and whatever it reaches, every name of the unit replaced by a number in order of appearance: two functions are the same
text exactly when they differ in names, comments and spaces only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_CONTRACT = re.compile(r'"[0-9a-f]{64}"')


@dataclass(frozen=True)
class Piece:
    """``source`` is the piece as it stands in the file, ``tokens`` what of it counts, ``names`` what it defines.

    A piece without names (a directive between functions) is loose: it belongs to every function.
    """

    tokens: tuple[str, ...]
    names: frozenset[str]
    source: str


@dataclass(frozen=True)
class Closure:
    """Tokens without names, and the piece that each run of them comes from (index in the unit, number of tokens)."""

    tokens: tuple[str, ...]
    runs: tuple[tuple[int, int], ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\0".join(self.tokens).encode()).hexdigest()[:12]


class Unit:
    """A file in pieces; ``line_of(source, n)`` gives the line of a piece's n-th token, for people."""

    def __init__(self, pieces: Iterable[Piece], line_of: Callable[[str, int], str]) -> None:
        self.pieces = tuple(pieces)
        self.line_of = line_of
        self.by_name: dict[str, list[int]] = {}
        for i, piece in enumerate(self.pieces):
            for name in piece.names:
                self.by_name.setdefault(name, []).append(i)
        self.loose = [i for i, piece in enumerate(self.pieces) if not piece.names]
        self._uses = [tuple(dict.fromkeys(t for t in piece.tokens if t in self.by_name)) for piece in self.pieces]

    def reached(self, roots: Iterable[str], stop: frozenset[str] = frozenset()) -> list[int]:
        """Loose pieces, then those that they and ``roots`` use, in order of discovery; names in ``stop`` are not followed."""
        order = dict.fromkeys(self.loose)
        used = [name for i in self.loose for name in self._uses[i]]
        waiting = [i for name in (*used, *roots) for i in self.by_name.get(name, ())]
        for i in waiting:  # grows while it is read
            if i not in order:
                order[i] = None
                waiting += [j for name in self._uses[i] if name not in stop for j in self.by_name[name] if j not in order]
        return list(order)

    def closure(self, roots: Iterable[str], stop: frozenset[str] = frozenset()) -> Closure:
        """All that ``roots`` reach, without names."""
        numbers: dict[str, str] = {}
        tokens: list[str] = []
        runs = []
        for i in self.reached(roots, stop):
            for text in self.pieces[i].tokens:
                if text in self.by_name:
                    text = numbers.setdefault(text, f"${len(numbers)}")
                elif len(text) == 66 and _CONTRACT.fullmatch(text):
                    text = "$contract"
                tokens.append(text)
            runs.append((i, len(self.pieces[i].tokens)))
        return Closure(tuple(tokens), tuple(runs))

    def part(self, roots: Iterable[str]) -> str:
        """The file with nothing in it but what ``roots`` reach and loose pieces, in the file's order."""
        return "\n".join(self.pieces[i].source for i in sorted(self.reached(roots))) + "\n"

    def line(self, closure: Closure, at: int) -> str:
        """The line of a closure's token ``at``; empty behind its end."""
        for i, count in closure.runs:
            if at < count:
                return self.line_of(self.pieces[i].source, at)
            at -= count
        return ""


def first_difference(base: Closure, new: Closure) -> int:
    """The first token that differs."""
    pairs = zip(base.tokens, new.tokens, strict=False)
    shorter = min(len(base.tokens), len(new.tokens))
    return next((i for i, (old, now) in enumerate(pairs) if old != now), shorter)

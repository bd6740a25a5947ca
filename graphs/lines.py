"""The tokens of one line of a graph's text, and what all of its parts are written with: names, numbers, attributes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ferrum.errors import FerrumError
from ferrum.graphs.ir import Attr

KEYWORDS = frozenset({"graph", "input", "state", "param", "region", "return", "true", "false", "inf", "nan"})
MAX_DEPTH = 16  # of regions and tuples in one another
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]*\Z")
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")
          |(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf(?![A-Za-z0-9_.+-])))
          |(?P<name>[A-Za-z_][A-Za-z0-9_.+-]*)
          |(?P<mark>//|[\[\](){}:=,@+*-]))""",
    re.VERBOSE,
)


def quote(name: str) -> str:
    return name if PLAIN.match(name) and name not in KEYWORDS else json.dumps(name)


def print_attr(value: Attr) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "(" + ", ".join(print_attr(item) for item in value) + ")"
    return json.dumps(value) if isinstance(value, str) else repr(value)


@dataclass
class Line:
    """The tokens of one line, read from left to right."""

    number: int
    text: str
    tokens: list[tuple[str, str]]
    at: int = 0

    def fault(self, expected: str) -> FerrumError:
        found = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end of the line"
        return FerrumError("graph-text", f"expected {expected}, found {found[:60]}", f"graph text, line {self.number}", "")

    def peek(self, text: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] in (("mark", text), ("name", text))

    def ahead(self, text: str) -> bool:
        """Whether ``text`` comes after the next token."""
        return self.at + 1 < len(self.tokens) and self.tokens[self.at + 1] == ("mark", text)

    def take(self, text: str) -> bool:
        hit = self.peek(text)
        self.at += hit
        return hit

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.fault(f"'{text}'")

    def done(self) -> None:
        if self.at < len(self.tokens):
            raise self.fault("the end of the line")

    def string(self, what: str) -> str:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind not in ("name", "string"):
            raise self.fault(what)
        self.at += 1
        if kind == "name":
            return text
        try:
            return str(json.loads(text))
        except ValueError:
            self.at -= 1
            raise self.fault(what) from None

    def number_or(self) -> int | float | None:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind == "name" and text in ("inf", "nan"):
            self.at += 1
            return float(text)
        if kind != "number":
            return None
        try:
            value = float(text) if any(c in text for c in ".eEn") else int(text)
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                raise ValueError
        except ValueError:
            raise self.fault("a number of 64 bits") from None
        self.at += 1
        return value

    def integer(self, what: str) -> int:
        value = self.number_or()
        if not isinstance(value, int):
            raise self.fault(what)
        return value

    def names(self, end: str) -> tuple[str, ...]:
        out: list[str] = []
        while not self.take(end):
            if out:
                self.expect(",")
            out.append(self.string("a name"))
        return tuple(out)


def tokenize(number: int, text: str) -> Line:
    tokens: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = TOKEN.match(text, at)
        if match is None:
            raise FerrumError("graph-text", f"cannot read {text[at : at + 20].strip()!r}", f"graph text, line {number}", "")
        kind = match.lastgroup or ""
        tokens.append((kind, match.group(kind)))
        at = match.end()
    return Line(number, text, tokens)


def parse_attr(line: Line, depth: int = 0) -> Attr:
    if line.take("("):
        if depth > MAX_DEPTH:
            raise line.fault("a tuple of one kind")
        items: list[Attr] = []
        while not line.take(")"):
            if items:
                line.expect(",")
            items.append(parse_attr(line, depth + 1))
        kinds = {type(item) for item in items}
        if len(kinds) > 1 or not kinds <= {int, float, str}:
            raise line.fault("a tuple of one kind")
        return tuple(items)  # type: ignore[return-value]
    if line.take("true"):
        return True
    if line.take("false"):
        return False
    number = line.number_or()
    return line.string("an attribute value") if number is None else number

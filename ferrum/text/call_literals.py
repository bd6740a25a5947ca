"""Calls whose arguments are literals of another language: Python's ``f(a='x', b=[1])`` and Gemma's ``f{a:<|"|>x<|"|>}``.

The name leaves as soon as it is read, the arguments when the call is whole: only then is it known what they mean.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.text.call_json import MAX_NAME_CHARS
from ferrum.text.tool_bodies import Call, CallWriter

MAX_CALL_CHARS = 1 << 20
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True, slots=True)
class Literals:
    """``opener`` NAME ``open`` … ``close``. ``quotes`` begin and end a text; ``read``: what is inside → arguments."""

    read: Callable[[str], dict[str, Any]]
    open: str
    close: str
    quotes: tuple[str, ...]
    opener: str = ""
    keeps_opener: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, *self.quotes)

    def reader(self) -> Call:
        return _LiteralsReader(self)


class _LiteralsReader:
    def __init__(self, syntax: Literals) -> None:
        self.done = False
        self.failed = False
        self._syntax = syntax
        self._held = ""
        self._name = ""
        self._at = 0  # where the search for the end goes on
        self._depth = 0
        self._quote = ""

    def feed(self, text: str, out: CallWriter) -> str:
        self._held += text
        if not self._name and not self._find_name(out):
            return self._held if self.failed else ""
        if not self._find_close():
            return ""
        inside, rest = self._held[: self._at], self._held[self._at + 1 :]
        out.arguments(self._arguments(inside))
        self.done = True
        return rest

    def finish(self, out: CallWriter) -> None:
        if self._name and not self.done:
            out.arguments(self._arguments(self._held))
        self.failed = not self._name

    def _find_name(self, out: CallWriter) -> bool:
        at = self._held.find(self._syntax.open)
        name = self._held[:at].strip()
        if at < 0 or name not in out.schemas:
            self.failed = at >= 0 or len(self._held) > MAX_NAME_CHARS or re.fullmatch(r"\s*[\w.-]*\s*", self._held) is None
            return False
        self._name, self._held = name, self._held[at + 1 :]
        out.name(name)
        return True

    def _find_close(self) -> bool:
        """Whether ``_at`` reached the bracket that closes the call. Quotes of several characters are seen whole only."""
        longest = max(map(len, self._syntax.quotes))
        while self._at < len(self._held):
            if self._quote:
                if self._held[self._at] == "\\":
                    self._at += 2
                elif self._held.startswith(self._quote, self._at):
                    self._at += len(self._quote)
                    self._quote = ""
                elif longest > 1 and self._quote.startswith(self._held[self._at :]):
                    return False
                else:
                    self._at += 1
                continue
            char = self._held[self._at]
            self._quote = next((q for q in self._syntax.quotes if self._held.startswith(q, self._at)), "")
            if not self._quote and longest > 1 and any(q.startswith(self._held[self._at :]) for q in self._syntax.quotes):
                return False
            if not self._quote and char in "([{":
                self._depth += 1
            elif not self._quote and char in ")]}":
                if not self._depth:
                    return True
                self._depth -= 1
            self._at += len(self._quote) or 1
        return False

    def _arguments(self, inside: str) -> str:
        """JSON; what cannot be read leaves as it is, under a name of its own, so that it is not lost."""
        try:
            return json.dumps(self._syntax.read(inside), ensure_ascii=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return json.dumps({"arguments": inside}, ensure_ascii=False)


# ---- Python


def read_python(inside: str) -> dict[str, Any]:
    """``a='x', b=[1, True]`` as a dict. Raises ValueError and SyntaxError for what is no literal."""
    if len(inside) > MAX_CALL_CHARS:
        raise ValueError("too long")
    call = ast.parse(f"f({_escaped(inside)})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise ValueError("not named arguments")
    return {str(k.arg): _literal(k.value) for k in call.keywords}


def _escaped(inside: str) -> str:
    """Line breaks within quotes, which models and templates write as they are."""
    quote, result = "", []
    previous = ""
    for char in inside:
        if quote and char in "\n\r":
            result.append("\\n" if char == "\n" else "\\r")
        else:
            result.append(char)
            if not quote and char in "'\"":
                quote = char
            elif char == quote and previous != "\\":
                quote = ""
        previous = "" if previous == "\\" else char
    return "".join(result)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _WORDS:  # JSON's words
        return _WORDS[node.id]
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    json.dumps(value)  # bytes and sets are not arguments
    return value


def _key(node: ast.expr | None) -> str:
    value = None if node is None else ast.literal_eval(node)
    if not isinstance(value, str):
        raise ValueError("a key is no text")
    return value


# ---- Gemma

GEMMA_QUOTE = '<|"|>'
_PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}
_GEMMA_TOKEN = re.compile(r'<\|"\|>(.*?)<\|"\|>|([{}\[\],:])|([^{}\[\],:<]+)', re.DOTALL)


def read_gemma(inside: str) -> dict[str, Any]:
    """``city:<|"|>Oslo<|"|>,days:3`` as a dict. Raises ValueError."""
    if len(inside) > MAX_CALL_CHARS:
        raise ValueError("too long")
    parts: list[str] = []
    at = 0
    while at < len(inside):
        match = _GEMMA_TOKEN.match(inside, at)
        if match is None:
            raise ValueError("neither text nor bracket")
        text, mark, bare = match.groups()
        at = match.end()
        if text is not None:
            parts.append(json.dumps(text, ensure_ascii=False))
        elif mark:
            parts.append(mark)
        elif bare.strip():
            is_key = inside[at : at + 1] == ":"
            word = bare.strip()
            parts.append(json.dumps(word, ensure_ascii=False) if is_key else _PYTHON_WORDS.get(word, word))
    value = json.loads("{" + "".join(parts) + "}")
    assert isinstance(value, dict)
    return value

"""C, CUDA and Metal sources in pieces. Only the top level is understood: where a definition starts, ends, and what it defines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tests.kernel_diff.text import Piece, Unit

_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.S)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.M)
_TOKEN = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.])*'
    r"|<<=|>>=|\.\.\.|->|\+\+|--|<<|>>|[-+*/%&|^<>=!]=|&&|\|\||::|[^\s\\]"
)
_DEFINE = re.compile(r"#\s*define\s+(\w+)(\()?")
_ATTRIBUTES = frozenset({"__attribute__", "__launch_bounds__", "alignas", "__align__", "_Alignas", "_Static_assert"})
_TYPES = frozenset({"typedef", "struct", "union", "enum", "class"})
_WORD = re.compile(r"[A-Za-z_]\w*")
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
# What functions that devices call look like.
_ENTRY = re.compile(r"(?:\b__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?|\bkernel\s+void\s+)(\w+)\s*\(")


def parse_c(source: str) -> Unit:
    """The pieces of a rendered source; a piece's text has no comments."""
    text = _COMMENT.sub(lambda m: m[0] if m[0][0] in "\"'" else " " + "\n" * m[0].count("\n"), source)
    return Unit(_pieces(text), c_line)


def entries(source: str) -> list[str]:
    """The kernels of a GPU's source, in its order."""
    return list(dict.fromkeys(_ENTRY.findall(source)))


def c_line(source: str, number: int) -> str:
    """The line of a piece's token."""
    matches = list(_TOKEN.finditer(source))
    if number >= len(matches):
        return ""
    at = matches[number].start()
    end = source.find("\n", at)
    return source[source.rfind("\n", 0, at) + 1 : end if end >= 0 else len(source)].strip().removesuffix("\\").rstrip()


def _pieces(text: str) -> Iterator[Piece]:
    """A directive outside of a definition is a piece of its own, one inside belongs to the definition."""
    macros = {m[1] for m in _DEFINE.finditer(text) if m[2]}
    directives = {m.end() - len(m[0].lstrip()): m.end() for m in _DIRECTIVE.finditer(text)}
    held: list[str] = []
    start, depth, inside, body = 0, 0, 0, False
    for match in _TOKEN.finditer(text):
        token, at = match[0], match.start()
        if at >= inside and depth == 0 and held and held[0] == "#":
            yield _directive(held, text[start:at])
            held, start = [], at
        inside = max(inside, directives.get(at, 0))
        held.append(token)
        if at < inside:
            continue
        if token in _OPEN:
            body = body or (token == "{" and depth == 0 and _is_function(held))
            depth += 1
            continue
        depth -= token in _CLOSE
        if depth == 0 and (token == ";" or (token == "}" and body) or (token == ")" and _is_made(held, macros))):
            if len(held) > 1:
                yield Piece(tuple(held), _names(held, body, macros), text[start : match.end()])
            held, start, body = [], match.end(), False
    if held:
        yield _directive(held, text[start:])


def _directive(tokens: list[str], source: str) -> Piece:
    """A macro by its name; what the system's headers read (``_GNU_SOURCE``) is named by nobody, so it is loose."""
    defined = _DEFINE.match(source.strip())
    return Piece(tuple(tokens), frozenset({defined[1]} if defined and defined[1][0] != "_" else ()), source)


def _flat(tokens: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """(token, the one after it, depth of brackets around it)."""
    depth = 0
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        depth -= token in _CLOSE
        yield token, after, depth
        depth += token in _OPEN


def _is_function(tokens: list[str]) -> bool:
    """Whether a brace that opens here is a function's: parameters before it, and neither a type nor an initialiser."""
    top = {text for text, _, depth in _flat(tokens[:-1]) if depth == 0}
    return "(" in top and "=" not in top and not _TYPES & top


def _is_made(tokens: list[str], macros: set[str]) -> bool:
    """Whether this is a macro's call that makes a definition; its first argument is the name."""
    return tokens[0] in macros and tokens[1] == "("


def _names(tokens: list[str], body: bool, macros: set[str]) -> frozenset[str]:
    if _is_made(tokens, macros):
        return frozenset(tokens[2:3])
    flat = [(t, after, depth) for t, after, depth in _flat(tokens) if _WORD.fullmatch(t) and t not in _ATTRIBUTES]
    if tokens[0] == "using":
        return frozenset()
    if body:
        return frozenset([t for t, after, depth in flat if depth == 0 and after == "("][-1:])
    ends = ("=", "[", ";", ",", "{", "(", "__attribute__")
    names = {t for t, after, depth in flat if depth == 0 and after in ends}
    if any(t == "enum" and depth == 0 for t, _, depth in flat):
        names |= {t for t, after, depth in flat if depth == 1 and after in ("=", ",", "}")}
    return frozenset(names - _TYPES)

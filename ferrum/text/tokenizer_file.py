"""What of a ``tokenizer.json`` is looked at before the library opens it.

The library runs whatever the file says: a regex that backtracks for ever, a normalizer that writes a gigabyte, an id that makes
a table of four thousand million places; some of it ends the process, which nothing can catch. So only components that are known
here are let in, each within bounds that every published model keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from ferrum.errors import FerrumError

MAX_COMPONENTS = 64  # of all kinds, nested ones counted
MAX_PATTERN = 8192  # characters of a regex; those with tables of scripts have a few thousand
MAX_INSERTED = 64  # characters that a component may put in one place
MAX_GROWTH = 64.0  # factor by which all replacements together may lengthen a text
MAX_TOKEN_CHARS = 4096
MAX_WORD_CHARS = 1024
MAX_ID = (1 << 24) - 1

_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors", "decoder": "decoders"}
_KNOWN = {
    "normalizer": frozenset(
        ("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Replace")
        + ("Sequence", "Strip", "StripAccents")
    ),
    "pre_tokenizer": frozenset(
        ("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Delimiter", "Digits", "FixedLength", "Metaspace", "Punctuation")
        + ("Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit")
    ),
    "post_processor": frozenset(("BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing")),
    "decoder": frozenset(
        ("BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Sequence", "Strip", "WordPiece")
    ),
}
_MODELS = frozenset(("", "BPE", "Unigram", "WordLevel", "WordPiece"))
# A text never becomes shorter by these, but for what Unicode composes: at most four characters into one.
_KEEPS_LENGTH = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Lowercase", "ByteLevel", "Replace", "Sequence"))
_COMPOSED = 4


class _Added(msgspec.Struct):
    content: str = ""
    id: int = 0


class _Model(msgspec.Struct):
    """The vocabulary is skipped."""

    type: str = ""
    byte_fallback: bool = False
    max_input_chars_per_word: int = 0  # WordPiece looks at so many characters once for each of them


class TokenizerFile(msgspec.Struct):
    model: _Model | None = None
    added_tokens: list[_Added] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None

    @property
    def is_byte_level(self) -> bool:
        kinds = [c["type"] for c in components(self.decoder, "decoder") if c["type"] != "Sequence"]
        return kinds == ["ByteLevel"]

    @property
    def composed(self) -> int:
        """How many characters of a text may become one before tokens are looked for; 0: any number."""
        kinds = set()
        for component in components(self.normalizer, "normalizer"):
            kinds.add(component["type"])
            if component["type"] == "Replace" and _growth(component, least=True) < 1:
                return 0
        if kinds - _KEEPS_LENGTH:
            return 0
        return _COMPOSED if any(k.startswith("NF") for k in kinds) else 1

    @property
    def spells_everything(self) -> bool:
        """Whether each character costs at least a part of a token: none is skipped or put together with others as unknown."""
        return self.is_byte_level or (self.model is not None and self.model.byte_fallback)


def read_tokenizer_file(raw: bytes) -> TokenizerFile:
    """The checked parts of a ``tokenizer.json``. Raises FerrumError for what is none and for a component that is not let in."""
    try:
        parsed = msgspec.json.decode(raw, type=TokenizerFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_tokenizer(f"not a tokenizer: {error}") from None
    if parsed.model is not None and parsed.model.type not in _MODELS:
        raise bad_tokenizer(f"a model of type {parsed.model.type} is not known")
    if parsed.model is not None and parsed.model.max_input_chars_per_word > MAX_WORD_CHARS:
        raise bad_tokenizer(f"max_input_chars_per_word may be {MAX_WORD_CHARS}")
    for part in _PARTS:
        _check_part(part, getattr(parsed, part))
    for token in parsed.added_tokens:
        if not 0 < len(token.content) <= MAX_TOKEN_CHARS or not 0 <= token.id <= MAX_ID:
            raise bad_tokenizer(f"added_tokens: a token must have 1 to {MAX_TOKEN_CHARS} characters and an id up to {MAX_ID}")
    return parsed


def bad_tokenizer(what: str) -> FerrumError:
    return FerrumError("bad-tokenizer", what, "tokenizer.json", "compile the model again from a copy that you trust")


def components(value: Any, part: str) -> Iterator[dict[str, Any]]:
    """``value`` and what it consists of, each with its type. Raises FerrumError for another form or too many."""
    waiting = [] if value is None else [value]
    count = 0
    while waiting:
        item = waiting.pop()
        count += 1
        if not isinstance(item, dict) or not isinstance(item.get("type"), str) or count > MAX_COMPONENTS:
            raise bad_tokenizer(f"{part}: not a component, or more than {MAX_COMPONENTS}")
        yield item
        if item["type"] == "Sequence":
            inner = item.get(_PARTS[part], [])
            waiting += reversed(inner[: MAX_COMPONENTS + 1] if isinstance(inner, list) else [None])


def _check_part(part: str, value: Any) -> None:
    growth = 1.0
    for component in components(value, part):
        kind = component["type"]
        if kind not in _KNOWN[part]:
            raise bad_tokenizer(f"{part}: {kind} is not known")
        if kind == "Replace":
            growth *= max(1.0, _growth(component, least=False))
        for name in ("prepend", "content", "prefix", "suffix", "replacement", "prepend_scheme", "cleanup"):
            inserted = component.get(name)
            if isinstance(inserted, str) and len(inserted) > MAX_INSERTED:
                raise bad_tokenizer(f"{part}: {kind} inserts more than {MAX_INSERTED} characters")
        pattern = component.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern:
            check_pattern(pattern["Regex"], f"{part}: {kind}")
        if kind == "TemplateProcessing":
            _check_template(component)
    if growth > MAX_GROWTH:
        raise bad_tokenizer(f"{part}: its replacements lengthen a text more than {MAX_GROWTH:.0f} times")


def _growth(component: dict[str, Any], *, least: bool) -> float:
    """The factor of a Replace. ``least``: below 1 for a pattern that may match much."""
    content, pattern = component.get("content"), component.get("pattern")
    if not isinstance(content, str) or not isinstance(pattern, dict):
        raise bad_tokenizer("Replace needs a pattern and a content")
    text = pattern.get("String")
    if isinstance(text, str) and text:
        return len(content) / len(text)
    return 0.0 if least else float(len(content))


def _check_template(component: dict[str, Any]) -> None:
    for name in ("single", "pair"):
        pieces = component.get(name) or []
        if not isinstance(pieces, list) or len(pieces) > MAX_COMPONENTS:
            raise bad_tokenizer(f"post_processor: a template may have {MAX_COMPONENTS} pieces")
        if sum(1 for p in pieces if isinstance(p, dict) and "Sequence" in p) > 2:
            raise bad_tokenizer("post_processor: a template repeats the text")
    tokens = component.get("special_tokens")
    for token in tokens.values() if isinstance(tokens, dict) else ():
        ids = token.get("ids") if isinstance(token, dict) else None
        known = isinstance(ids, list) and len(ids) <= MAX_COMPONENTS and all(isinstance(i, int) and 0 <= i <= MAX_ID for i in ids)
        if not known:
            raise bad_tokenizer("post_processor: special tokens must have ids of the vocabulary")


# ---- regexes


_TOKENS = re.compile(
    r"(?P<escape>\\(?:[pP]\{[^}]*\}|.))|(?P<set>\[)|(?P<open>\((?:\?(?:[imsx-]*:|[=!>]|<[=!]))?)|(?P<close>\))"
    r"|(?P<many>[*+][?+]?|\{\d*,\}[?+]?)|(?P<exactly>\{\d+\})|(?P<few>\?[?+]?|\{\d*,\d+\}[?+]?)|(?P<either>\|)|(?P<other>.)",
    re.DOTALL,
)
_REFERENCE = re.compile(r"\\[1-9kg]")


def check_pattern(pattern: Any, where: str) -> None:
    """Raises FerrumError for a regex that may backtrack without end.

    That needs a repetition without limit of something that can itself match one text in several ways: a group with another
    repetition or an alternative in it. No published tokenizer has one.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise bad_tokenizer(f"{where}: a pattern may have {MAX_PATTERN} characters")
    groups: list[bool] = []  # the open ones: whether each is ambiguous
    ambiguous = False  # what was read last
    at = 0
    while at < len(pattern):
        found = _TOKENS.match(pattern, at)
        assert found is not None
        at, kind, last = found.end(), found.lastgroup, ambiguous
        ambiguous = kind in ("few", "exactly") and last
        if kind == "escape" and _REFERENCE.match(found[0]):
            raise bad_tokenizer(f"{where}: a pattern refers back to what it matched")
        if kind == "many" and last:
            raise bad_tokenizer(f"{where}: a pattern repeats a repetition, so that it may take for ever")
        if kind == "set":
            at = _set_end(pattern, at, where)
        elif kind == "open":
            groups.append(False)
        elif kind == "close" and groups:
            ambiguous = groups.pop()
        if groups and (ambiguous or kind in ("many", "few", "either")):
            groups[-1] = True


def _set_end(pattern: str, at: int, where: str) -> int:
    """The position after the character set that begins before ``at``; sets may hold sets."""
    depth = 1
    start = True
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "\\":
            at += 1
        elif character == "[":
            depth += 1
        elif character == "]" and not start:
            depth -= 1
            if not depth:
                return at
        start = start and character == "^"
    raise bad_tokenizer(f"{where}: a character set does not end")

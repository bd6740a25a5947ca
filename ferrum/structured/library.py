"""The one place that knows llguidance: vocabularies, limits, and what its messages mean. Imported when a grammar is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ferrum.errors import FerrumError, one_line
from ferrum.structured.schema import refused

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
    from llguidance.gbnf_to_lark import any_to_lark
except ImportError:
    what = "structured answers need the package llguidance"
    raise FerrumError("grammar-missing", what, "structured", "pip install llguidance") from None

__all__ = ["LIMITS", "LLMatcher", "LLTokenizer", "combined", "matcher", "vocabulary"]

# Work of one mask and of one grammar, and memory of one grammar (a lexer's state takes one to two KB).
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=50_000, max_lexer_states=30_000, verbose_errors=False
)
_KEYWORDS = re.compile(r"Unimplemented keys: (\[.*?\])")
_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): ")


class _Vocabulary:
    """What the library asks of a tokenizer. ``encode``: a text's ids; what it makes of others' bytes is checked here."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Collection[int], eos: int, encode: Callable[[str], list[int]]) -> None:
        self.tokens = tokens
        self.special_token_ids = sorted(special)
        self.eos_token_id = eos
        self._encode = encode
        self._by_bytes = {t: i for i, t in enumerate(tokens) if t and i not in special}
        self._longest = max(map(len, self._by_bytes), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        try:
            ids = self._encode(raw.decode())
            if b"".join(self.tokens[i] for i in ids) == raw:
                return ids
        except (FerrumError, UnicodeDecodeError, IndexError):
            pass
        return self._greedy(raw)  # such as a tokenizer that puts a space before every text

    def _greedy(self, raw: bytes) -> list[int]:
        """The longest token at each place; a byte that no token has is left out."""
        ids: list[int] = []
        at = 0
        while at < len(raw):
            size = next((n for n in range(min(self._longest, len(raw) - at), 0, -1) if raw[at : at + n] in self._by_bytes), 0)
            if size:
                ids.append(self._by_bytes[raw[at : at + size]])
            at += size or 1
        return ids


def vocabulary(
    tokens: Sequence[bytes], special: Collection[int], ends: Collection[int], encode: Callable[[str], list[int]]
) -> LLTokenizer:
    """``tokens``: the bytes of each id; ids without any are never allowed. ``ends``: ids that end an answer, at least one."""
    eos = sorted(ends)
    wrapped: Any = _Vocabulary(tokens, special, eos[0], encode)  # their class has the same attributes and looks at no other
    return LLTokenizer(wrapped, n_vocab=len(tokens), eos_token=eos)


def matcher(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A grammar at its beginning. Raises FerrumError "grammar-refused"."""
    made = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if made.is_error():
        raise refused(explained(made.get_error()))
    return made


def combined(main: str, parts: Sequence[dict[str, Any]], tokenizer: LLTokenizer) -> str:
    """One grammar of the parts that ``grammar.plan`` named, each of which was tried. Raises FerrumError "grammar-refused"."""
    grammars: list[dict[str, Any]] = [{"name": "main", "lark_grammar": main}]
    for part in parts:
        entry = {"name": part["name"], **_entry(part)}
        try:
            _try({"grammars": [entry]}, tokenizer)
        except FerrumError as error:
            raise refused(error.what, part["where"]) from None
        grammars.append(entry)
    return _try({"grammars": grammars}, tokenizer)


def _entry(part: dict[str, Any]) -> dict[str, Any]:
    kind, value = part["kind"], part["value"]
    if kind == "json":
        return {"json_schema": value}
    if kind == "regex":
        return {"lark_grammar": f"start: /{regex_to_lark(value, 'd')}/"}
    try:
        return {"lark_grammar": any_to_lark(value)}
    except RecursionError:
        raise
    except Exception as error:  # of the library's converter, which raises what it likes
        raise refused(f"the grammar cannot be read: {one_line(str(error), 120)}", part["where"]) from None


def _try(grammar: dict[str, Any], tokenizer: LLTokenizer) -> str:
    """The text of a grammar whose first mask allows something."""
    text = json.dumps(grammar, ensure_ascii=False)
    failed, messages = LLMatcher.validate_grammar_with_warnings(text, tokenizer, limits=LIMITS)
    if failed:
        raise refused(explained(messages[0] if messages else ""))
    first = matcher(text, tokenizer)
    mask = first.compute_bitmask()
    if first.is_error() or not any(mask):
        raise refused(explained(first.get_error()) if first.is_error() else "nothing keeps to the grammar")
    return text


def explained(message: str) -> str:
    """The library's message as one of ours, in one line."""
    found = _KEYWORDS.search(message)
    if found:
        names = ", ".join(json.loads(found[1]))
        return f"the schema's keyword {names} is not supported"
    lines = message.strip().splitlines() or ["it cannot be compiled"]
    why = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return f"the grammar is refused: {one_line(' '.join([_PLACE.sub('', lines[0]), *why]), 200)}"

"""What a tokenizer.json may consist of: published ones are let in, and what would hang or end the process is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.text.tokenizer import Tokenizer
from ferrum.text.tokenizer_file import check_pattern, read_tokenizer_file

TINY = json.loads((Path(__file__).parents[2] / "graphs/tiny/model/tokenizer.json").read_text(encoding="utf-8"))

PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"[一-龥\x{4e00}-\x{9fff}]+|[]a]+|[^]a]+|\[a|(?<=x)y|(?<!x)z",
    " {2,}",
    r"\s+",
]
ENDLESS = [
    r"(a+)+$", r"(a|a)*c", r"(x+x+)+y", r"((a?)b)*", r"(?:a{1,5})+b", r"(a+){2,}", r"(?:(?:a*))*", r"(a)\1", r"\g<1>",
    r"(?i:a|b)++c", "[a", "a" * 10_000, 5, r"((ab|cd)e)*", r"(?:a??b)+?",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PUBLISHED, ids=lambda p: str(p)[:20])
def test_published_patterns_are_let_in(pattern: str) -> None:
    check_pattern(pattern, "pre_tokenizer")
    Tokenizer(changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}))


@pytest.mark.parametrize("pattern", ENDLESS, ids=lambda p: str(p)[:20])
def test_patterns_that_may_take_for_ever_are_not(pattern: Any) -> None:
    with pytest.raises(FerrumError) as caught:
        check_pattern(pattern, "pre_tokenizer")
    assert caught.value.code == "bad-tokenizer"


def changed(**parts: Any) -> bytes:
    return json.dumps({**TINY, **parts}).encode()


def replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def added(token_id: int, content: str) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [*TINY["added_tokens"], {"id": token_id, "content": content, "special": True, **flags}]


def template(single: list[Any], special: dict[str, Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
HOSTILE: dict[str, dict[str, Any]] = {
    "growing": {"normalizer": sequence(*[replace("l", "l" * 30)] * 8)},
    "large": {"normalizer": replace("l", "l" * 1000)},
    "many": {"normalizer": sequence(*[{"type": "Prepend", "prepend": "x"}] * 200)},
    "prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
    "every character": {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 65}},
    "endless": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
    "endless normalizer": {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}},
    "unknown": {"pre_tokenizer": {"type": "Python", "code": "import os"}},
    "unknown inside": {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Custom"}]}},
    "no component": {"decoder": [1]},
    "nested": {"normalizer": sequence(sequence(*[sequence()] * 70))},
    "repeating": {"post_processor": template([SEQUENCE] * 50, {})},
    "long template": {"post_processor": template([SEQUENCE] * 100_000, {})},
    "large id": {"post_processor": template([SEQUENCE], {"z": {"id": "z", "ids": [4294967295], "tokens": ["z"]}})},
    "empty token": {"added_tokens": added(9999, "")},
    "distant token": {"added_tokens": added(4294967295, "zz")},
    "unknown model": {"model": {"type": "Pickle"}},
    "long words": {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_hang_or_fill_the_memory_is_refused(name: str) -> None:
    with pytest.raises(FerrumError) as caught:
        Tokenizer(changed(**HOSTILE[name]))
    assert caught.value.code == "bad-tokenizer" and caught.value.where == "tokenizer.json"


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["Sequence", "Replace", "Split", "NFC"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "normalizers", "pretokenizers", "pattern", "Regex", "String", "content", "single", "special_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "model"]), json_values)
def test_any_other_form_is_refused_or_let_in_but_never_a_fault(part: str, value: Any) -> None:
    try:
        read = read_tokenizer_file(changed(**{part: value}))
        assert read.composed >= 0 and read.spells_everything in (True, False)
    except FerrumError as error:
        assert error.code == "bad-tokenizer"


@given(st.text(max_size=40))
def test_a_token_covers_no_more_characters_than_said(text: str) -> None:
    tokenizer = Tokenizer(changed())
    ids = tokenizer.encode(text, special=False)
    assert len(text) <= len(ids) * tokenizer.most_chars


def test_nothing_is_said_of_tokenizers_that_skip_characters() -> None:
    for parts in (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": replace("ab", "")},
        {"decoder": None},
    ):
        assert Tokenizer(changed(**parts)).most_chars == 0
    plain, composed = Tokenizer(changed(normalizer=None)).most_chars, Tokenizer(changed(normalizer={"type": "NFC"})).most_chars
    assert composed == 4 * plain > 0

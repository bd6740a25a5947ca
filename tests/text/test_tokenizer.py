"""The tokenizer: round trips, its refusals, and the bytes of single tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.text.tokenizer import Tokenizer
from tests.text.tokenizers import byte_level, load, sentence_piece

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@given(TEXTS)
def test_byte_level_round_trip(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(TEXTS)
def test_sentence_piece_bytes_are_those_of_the_text(text: str) -> None:
    tokenizer = sentence_piece()
    known = "".join(c for c in text if c != "\N{LOWER ONE EIGHTH BLOCK}")
    ids = tokenizer.encode(known)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == (" " + known if known else "")


def test_lone_surrogates_are_refused_before_the_library_sees_them() -> None:
    for text in ("a\ud800b", "\udfff", "日\udc80"):
        with pytest.raises(FerrumError) as caught:
            byte_level().encode(text)
        assert caught.value.code == "invalid-text" and caught.value.where == "prompt"


def test_ids_outside_the_vocabulary_are_refused() -> None:
    tokenizer = byte_level()
    for ids in ([-1], [tokenizer.max_id + 1], [1 << 40]):
        with pytest.raises(FerrumError) as caught:
            tokenizer.decode(ids)
        assert caught.value.code == "invalid-token"


def test_special_tokens() -> None:
    tokenizer = byte_level()
    end, visible = tokenizer.token_id("<|end|>"), tokenizer.token_id("<tool>")
    assert end is not None and visible is not None
    assert tokenizer.special_ids == {end, end + 2} and tokenizer.token_text(end) == "<|end|>"
    assert tokenizer.encode("a<|end|>b") == [97, end, 98]
    assert tokenizer.decode([97, end, visible, 98]) == "a<tool>b"
    assert tokenizer.decode([97, end, 98], skip_special=False) == "a<|end|>b"


def test_words_that_the_vocabulary_cannot_spell_are_refused() -> None:
    model = {"type": "WordLevel", "vocab": {"hello": 0, "world": 1}, "unk_token": "[UNK]"}
    tokenizer = load({"added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model})
    assert tokenizer.encode("hello world") == [0, 1]
    with pytest.raises(FerrumError) as caught:
        tokenizer.encode("hello everyone")
    assert caught.value.code == "invalid-text" and "\n" not in str(caught.value)


def test_special_tokens_as_stop_strings_become_ids() -> None:
    tokenizer = byte_level()
    end, visible = tokenizer.token_id("<|end|>"), tokenizer.token_id("<tool>")
    assert end is not None and visible is not None
    assert tokenizer.stop_ids(["<|end|>", "<tool>", "x", "<|end|>x"]) == (end,)


def test_truncation_and_padding_of_the_file_are_off() -> None:
    parts = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "a",
        },
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }  # fmt: skip
    assert Tokenizer(json.dumps(parts).encode()).encode("aaaa") == [0, 0, 0, 0]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"version":"1.0","model":{"type":"BPE"}}', b"{" * 10_000])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(FerrumError) as caught:
        Tokenizer(data)
    assert caught.value.code == "bad-tokenizer" and "\n" not in str(caught.value)

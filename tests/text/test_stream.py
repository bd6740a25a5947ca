"""Streams against brute force: whatever the tokens and their order, what leaves is the text up to the first stop string."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.text.stream import REPLACEMENT, StopMatcher, StreamDecoder, TextStream
from tests.text.tokenizers import byte_level, sentence_piece


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Brute force: the shortest beginning of ``text`` that ends with a stop string, without the longest one there."""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if s and text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def pieces_of(rng: random.Random, text: str) -> list[str]:
    pieces = []
    while text:
        size = rng.randint(1, 4)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def test_stop_strings_equal_brute_force_in_10000_cases() -> None:
    rng = random.Random(7)
    for _ in range(10_000):
        alphabet = rng.choice(["ab", "abc", "aé日", "ab\n<"])
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 24)))
        stops = ["".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(rng.randint(0, 4))]
        matcher = StopMatcher(stops)
        out = ""
        for piece in pieces_of(rng, text):
            out += matcher.feed(piece)
            expected, stopped = cut(text, stops)
            assert expected.startswith(out), (text, stops)
        out += matcher.finish()
        assert (out, matcher.stopped) == cut(text, stops), (text, stops)


def test_only_what_could_be_a_stop_string_is_held_back() -> None:
    rng = random.Random(8)
    for _ in range(2_000):
        text = "".join(rng.choices("ab", k=rng.randint(1, 16)))
        stops = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        matcher, out, fed = StopMatcher(stops), "", ""
        for piece in pieces_of(rng, text):
            out += matcher.feed(piece)
            fed += piece
            if matcher.stopped:
                break
            held = fed[len(out) :]
            assert held == "" or any(stop.startswith(held) for stop in stops), (fed, out, stops)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=30), st.lists(st.text("ab<é日 \ufffd", min_size=1, max_size=4), max_size=4))
def test_streams_of_any_bytes_equal_the_whole_decoding(ids: list[int], stops: list[str]) -> None:
    tokenizer = byte_level()
    known = [i % (tokenizer.max_id + 1) for i in ids]
    stream = TextStream(tokenizer, stops)
    out = ""
    for token in known:
        piece = stream.feed(token)
        piece.encode()
        out += piece
    out += stream.finish()
    assert (out, stream.stopped) == cut(tokenizer.decode(known), stops)


def test_no_half_code_point_leaves() -> None:
    for tokenizer in (byte_level(), sentence_piece()):
        text = "é日本 the cat 🙂 é"
        stream = StreamDecoder(tokenizer)
        pieces = [stream.feed(t) for t in tokenizer.encode(text)] + [stream.finish()]
        assert "".join(pieces) == text
        assert not any(REPLACEMENT in p for p in pieces) and len([p for p in pieces if p]) > 5


def test_bytes_that_never_become_text_do_leave() -> None:
    bytes_of = byte_level()
    stream = StreamDecoder(bytes_of)
    assert stream.feed(0xF0) == "" and stream.feed(0x9F) == ""
    assert stream.feed(ord("a")) == "\ufffda"
    assert stream.feed(0xE6) == "" and stream.finish() == "\ufffd"
    fallback = sentence_piece()
    stream = StreamDecoder(fallback)
    out = "".join(stream.feed(3 + 0x80) for _ in range(39))
    assert 0 < len(out) < 39 and set(out) == {REPLACEMENT}
    assert len(out + stream.finish()) == 39


@settings(max_examples=200, deadline=None)
@given(st.text("theca mlo!é日🙂", max_size=30))
def test_sentence_piece_streams_equal_the_whole_decoding(text: str) -> None:
    tokenizer = sentence_piece()
    ids = tokenizer.encode(text)
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids) == text


def test_a_continued_text_keeps_its_space() -> None:
    tokenizer = sentence_piece()
    the, cat = tokenizer.token_id("\u2581the"), tokenizer.token_id("\u2581cat")
    assert the is not None and cat is not None
    assert StreamDecoder(tokenizer, context=[the]).feed(cat) == " cat"
    assert StreamDecoder(tokenizer).feed(cat) == "cat"


@settings(max_examples=300, deadline=None)
@given(st.text("ขคงจ日é🙂 theca\n", max_size=12), st.text("ขคงจ日é🙂 theca\n", max_size=8), st.integers(0, 40))
def test_continued_texts_equal_the_whole_decoding(before: str, after: str, split: int) -> None:
    """Whatever bytes the prompt ends with; a character that it began comes whole."""
    for tokenizer in (byte_level(), sentence_piece()):
        ids = tokenizer.encode(before + after)
        prompt, rest = ids[: min(split, len(ids))], ids[min(split, len(ids)) :]
        stream = StreamDecoder(tokenizer, context=prompt)
        whole = (tokenizer.decode(prompt[:end]) for end in range(len(prompt), -1, -1))
        begun = next(text for text in whole if REPLACEMENT not in text)
        assert "".join(map(stream.feed, rest)) + (stream.finish() if rest else "") == tokenizer.decode(ids)[len(begun) :]


def test_a_prompt_of_byte_tokens_does_not_spoil_what_follows() -> None:
    tokenizer = sentence_piece()
    for prompt in ("ง", "ขคง", "กขคงกขคง", "abcง"):
        stream = StreamDecoder(tokenizer, context=tokenizer.encode(prompt))
        answer = [3 + byte for byte in ("จ" * 9).encode()]
        pieces = [stream.feed(token) for token in answer]
        assert "".join(pieces) == "จ" * 9 and pieces[2] == "จ"


def test_special_tokens_are_left_out_unless_visible() -> None:
    tokenizer = byte_level()
    tag = tokenizer.token_id("<|tag|>")
    assert tag is not None
    for visible, expected in ((frozenset[int](), "ab"), (frozenset({tag}), "a<|tag|>b")):
        stream = StreamDecoder(tokenizer, visible=visible)
        assert "".join(map(stream.feed, [97, tag, 98])) + stream.finish() == expected

"""Vocabularies in GGUF files tokenize as the tokenizers that they were converted from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from ferrum.codegen.text import read_text
from ferrum.errors import FerrumError
from ferrum.graphs.gguf.pre_tokenizers import PRE_TOKENIZERS
from ferrum.graphs.model_files import open_files
from ferrum.text.tokenizer import Tokenizer
from ferrum.text.tokenizer_file import check_pattern
from tests.gguf.maker import SIZES, one_layer, write

HARD = (
    "", " ", "\n", "Hello, world!", "  two  spaces   three", "tabs\tand\nlines\r\n\r\n  x", "it's we'll I'VE don't",
    "1 12 123 1234567", "x = [1, 2, 3]; if (a != b) { return a->b; }", "Ünïcödé naïve café", "日本語のテキスト 中文字符",
    "한국어 문장입니다", "مرحبا بالعالم", "e\u0301 combining", "👩\u200d👩\u200d👧 and 🏳️", "\u200b\u00a0\ufeff",
    "<|im_start|>user\nhi<|im_end|>", "<s>[INST] x [/INST]</s>", "a" * 300, "snake_case camelCase UPPER", "...!!!???",
    "$100.50 €20 50%", "http://example.com/a?b=c&d=e#f", "\x00\x01\x7f", "ﬁ ﬂ ½ ²",
)  # fmt: skip
CORPUS = [
    *HARD, "the quick brown fox jumps over the lazy dog " * 3, "it's 2024 and 12345 things, don't they're" * 2,
] * 4  # fmt: skip
SPECIALS = ["<|im_start|>", "<|im_end|>"]
# as in the repositories of Qwen 2 and 3, and of Llama 3
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def made(folder: Path, words: dict[str, Any], template: str = "") -> Path:
    """``template``: for a model that is to be run, with a row for each token."""
    given = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    tensors = one_layer()
    if template:
        given["tokenizer.chat_template"] = template
        tensors["token_embd.weight"] = np.random.default_rng(1).normal(size=(len(words["tokens"]), 32)).astype(np.float32)
    return write(folder / "model.gguf", "llama", SIZES, tensors, words=given)


def read(path: Path) -> Tokenizer:
    return Tokenizer(open_files(path).read("tokenizer.json") or b"")


def same(found: Tokenizer, original: tokenizers.Tokenizer, texts: Iterable[str] = HARD) -> None:
    for text in texts:
        ids = original.encode(text).ids
        assert found.encode(text) == ids, text
        assert found.decode(ids, skip_special=False) == original.decode(ids, skip_special_tokens=False), text


def listing(original: tokenizers.Tokenizer) -> dict[str, Any]:
    """Tokens and types as a converter writes them."""
    added = original.get_added_tokens_decoder()
    by_id = {number: token for token, number in original.get_vocab().items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(max(by_id) + 1)]
    types = [3 if n in added and added[n].special else 4 if n in added else 1 if n in by_id else 5 for n in range(len(tokens))]
    return {"tokens": tokens, "token_type": types}


def merges_of(original: tokenizers.Tokenizer) -> list[str]:
    merges = json.loads(original.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def byte_pairs(cut: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    original = tokenizers.Tokenizer(models.BPE())
    original.pre_tokenizer, original.decoder = cut, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    original.train_from_iterator(CORPUS, trainer)
    original.add_special_tokens(SPECIALS)
    return original


def regex(pattern: str) -> pre_tokenizers.PreTokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS = {
    "gpt-2": LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), LEVEL]),
    "qwen2": regex(QWEN2),
    "llama-bpe": regex(LLAMA3),
}


@pytest.mark.parametrize("name", sorted(CUTS))
def test_byte_pairs_are_the_original_s(name: str, tmp_path: Path) -> None:
    original = byte_pairs(CUTS[name])
    words = {"model": "gpt2", "pre": name, "merges": merges_of(original), "add_bos_token": False, **listing(original)}
    same(read(made(tmp_path, words)), original)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=8))
def test_any_text_is_the_original_s(texts: list[str], tmp_path: Path) -> None:
    original = byte_pairs(CUTS["qwen2"])
    path = tmp_path / "model.gguf"
    if not path.exists():
        made(tmp_path, {"model": "gpt2", "pre": "qwen2", "merges": merges_of(original), **listing(original)})
    same(read(path), original, texts)


def test_sequences_begin_and_end_as_the_file_says(tmp_path: Path) -> None:
    original = byte_pairs(LEVEL)
    bos, eos = (original.token_to_id(token) for token in SPECIALS)
    words = {
        "model": "gpt2", "pre": "gpt-2", "merges": merges_of(original), "bos_token_id": bos, "eos_token_id": eos,
        **listing(original),
    }  # fmt: skip
    for add, ends in (((False, False), ([], [])), ((True, False), ([bos], [])), ((True, True), ([bos], [eos]))):
        found = read(made(tmp_path, {**words, "add_bos_token": add[0], "add_eos_token": add[1]}))
        assert found.encode("abc") == [*ends[0], *original.encode("abc").ids, *ends[1]]
        assert found.encode("abc", special=False) == original.encode("abc").ids


def sentence_pieces(prefix: bool) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """As Llama 2's: byte pairs over text whose spaces are ``▁``, scored by rank, with bytes for what has no piece."""
    space = "▁"
    normal = [normalizers.Prepend(space)] if prefix else []
    decoder = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    small = tokenizers.Tokenizer(models.BPE(fuse_unk=True))
    small.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always" if prefix else "never")
    small.train_from_iterator(CORPUS[:8], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(small.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]]
    whole = dict.fromkeys("".join(merge) for merge in merges)
    letters = [token for token in learned["vocab"] if token not in whole]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *whole, *letters]
    tokens = list(dict.fromkeys(tokens))
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    scores = [0.0] * 259 + [float(-n) for n in range(len(tokens) - 259)]
    vocab = {token: number for number, token in enumerate(tokens)}
    original = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    original.normalizer = normalizers.Sequence([*normal, normalizers.Replace(" ", space)])
    original.decoder = decoders.Sequence([*decoder, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    original.add_special_tokens(["<unk>", "<s>", "</s>"])
    words = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores, "add_bos_token": False}
    return original, {**words, "add_space_prefix": prefix}


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces_are_the_original_s(prefix: bool, tmp_path: Path) -> None:
    original, words = sentence_pieces(prefix)
    found = read(made(tmp_path, words))
    texts = [text for text in HARD if "<s>" not in text]
    for text in texts:
        assert found.encode(text) == original.encode(text, add_special_tokens=False).ids, text
    assert found.encode("<s>a")[0] == 1 and found.special_ids >= {1, 2}


def test_word_pieces_are_the_original_s(tmp_path: Path) -> None:
    original = tokenizers.BertWordPieceTokenizer(lowercase=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    original.train_from_iterator(CORPUS, vocab_size=400, special_tokens=special, show_progress=False)
    vocab = sorted(original.get_vocab().items(), key=lambda item: item[1])
    tokens = [t if t in special else t[2:] if t.startswith("##") else f"▁{t}" for t, _ in vocab]
    ids = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0, "mask_token_id": 4}
    words = {"model": "bert", "tokens": tokens, "token_type": [3 if t in special else 1 for t in tokens], **ids}
    found = read(made(tmp_path, words))
    for text in HARD:
        assert found.encode(text, special=False) == original.encode(text, add_special_tokens=False).ids, text
    assert found.encode("the fox")[0] == 2 and found.encode("the fox")[-1] == 3


def test_unigrams_are_the_original_s(tmp_path: Path) -> None:
    original = tokenizers.Tokenizer(models.Unigram())
    original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    original.train_from_iterator(CORPUS[:30], trainer)
    pieces = json.loads(original.to_str())["model"]["vocab"]
    words = {
        "model": "t5", "tokens": [token for token, _ in pieces], "scores": [float(score) for _, score in pieces],
        "token_type": [3, 3, 2, *[1] * (len(pieces) - 3)], "add_space_prefix": True, "add_eos_token": False,
    }  # fmt: skip
    found = read(made(tmp_path, words))
    for text in ("the quick brown fox", "it's 12345 things", "snake_case camelCase"):
        assert found.encode(text) == original.encode(text).ids, text


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_way_to_cut_is_let_in(name: str) -> None:
    for pattern in PRE_TOKENIZERS[name].patterns:
        check_pattern(pattern, name)
    cut = tokenizers.Tokenizer.from_str(json.dumps({
        "version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []},
        "pre_tokenizer": PRE_TOKENIZERS[name].as_json(),
    })).pre_tokenizer  # fmt: skip
    for text in HARD:
        pieces = [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)]
        assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"model": "gpt2", "pre": "mystery", "tokens": ["a"], "merges": ["a a"]}, "tokenizer.ggml.pre = 'mystery' is not known"),
        ({"model": "rwkv", "tokens": ["a"]}, "tokenizer.ggml.model = 'rwkv' is not known"),
        ({"model": "gpt2", "pre": "gpt-2", "tokens": ["a"], "merges": ["ab"]}, "has 'ab', which is no pair"),
        ({"model": "llama", "tokens": ["a", "b"], "scores": [1.0]}, "has not one finite number for each of 2 tokens"),
        ({"model": "llama", "tokens": ["a"], "scores": [float("nan")]}, "has not one finite number"),
    ],
)
def test_what_is_not_known_is_refused(words: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match=said) as caught:
        read_text(made(tmp_path, words))
    assert "\n" not in str(caught.value)


def test_templates_and_ends_come_along(tmp_path: Path) -> None:
    original = byte_pairs(LEVEL)
    words = {"model": "gpt2", "pre": "gpt-2", "merges": merges_of(original), "eos_token_id": 5, **listing(original)}
    given = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    given |= {
        "tokenizer.chat_template": "{{ messages[0].content }}", "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "{{ tools }}", "general.license": "apache-2.0", "general.sampling.temp": 0.5,
    }  # fmt: skip
    path = write(tmp_path / "m.gguf", "llama", SIZES, one_layer(), words=given)
    found = read_text(path)
    assert found.templates == {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    assert found.record.eos_token_ids == [5] and found.record.generation["temperature"] == 0.5
    assert found.record.special_tokens["eos_token"] == listing(original)["tokens"][5]

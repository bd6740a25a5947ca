"""What the compiler does to a model's tokenizer on its way into a pack."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ferrum.codegen.text import plain_merges

TEXT = "the cat sat on the mat; the other cats chatted at them."


def bpe(**changes: Any) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE, whose merges the library writes as pairs."""
    pairs = [("t", "h"), ("th", "e"), ("a", "t"), ("c", "at"), ("\u0120", "the"), ("h", "at"), ("#", "v")]
    tokens = sorted({*pre_tokenizers.ByteLevel.alphabet(), *(a + b for a, b in pairs)})
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    value["model"].update(changes)
    return value


def test_the_tokenizer_is_the_same() -> None:
    before = json.dumps(bpe()).encode()
    after = plain_merges(before)
    assert json.loads(after)["model"]["merges"][1] == "th e" and len(after) < len(before)
    assert plain_merges(after) == after
    one, two = Tokenizer.from_buffer(before), Tokenizer.from_buffer(after)
    assert json.loads(one.to_str()) == json.loads(two.to_str())
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice(TEXT + "\u00e9\u4e2d\n#v") for _ in range(40))
        assert one.encode(text).ids == two.encode(text).ids


@pytest.mark.parametrize("pair", [["a ", "b"], ["", "b"], ["#version", "b"], ["a"], "a b", [1, 2]])
def test_what_could_change_is_left_alone(pair: object) -> None:
    data = json.dumps(bpe(merges=[["t", "h"], pair])).encode()
    assert plain_merges(data) == data


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b'{"model": null}', b'{"model": {"merges": 3}}', b"\xff"])
def test_what_is_no_such_tokenizer_is_left_alone(data: bytes) -> None:
    assert plain_merges(data) == data

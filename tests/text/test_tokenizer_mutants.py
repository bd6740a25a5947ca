"""Damaged tokenizer files: each is let in and works, or is refused in one line; ``MUTANTS`` sets how many."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from ferrum.errors import FerrumError
from ferrum.text.tokenizer import Tokenizer

MUTANTS = int(os.environ.get("MUTANTS", "300"))
TINY = json.loads((Path(__file__).parents[2] / "graphs/tiny/model/tokenizer.json").read_text(encoding="utf-8"))
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**32, 2**64, 1e308, "", "a", "\u0000", "\N{GRINNING FACE}", "x" * 5000, [], {}, [[]],
    "Sequence", "Regex", {"type": "Sequence"}, {"Regex": "("}, {"String": ""},
)  # fmt: skip
SECOND = 1.0


def small() -> dict[str, Any]:
    """The built-in model's file with the merges that its first 300 tokens need, so that one mutant takes a millisecond."""
    made = copy.deepcopy(TINY)
    vocabulary = {token: i for token, i in made["model"]["vocab"].items() if i < 300}
    made["model"]["vocab"] = vocabulary
    pairs = [pair.split() if isinstance(pair, str) else pair for pair in made["model"]["merges"]]
    made["model"]["merges"] = [pair for pair in pairs if "".join(pair) in vocabulary and set(pair) <= set(vocabulary)]
    for i, token in enumerate(made["added_tokens"]):
        token["id"] = 300 + i
    return made


def places(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container somewhere in ``value`` and a key of it; those near the top are as likely as those far below."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        below = value[key]
        if not isinstance(below, (dict, list)) or not below or rng.random() < 0.3:
            return value, key
        value = below


def mutant(source: dict[str, Any], seed: int) -> bytes:
    """One to three changes of the JSON, and now and then some of its bytes."""
    rng = random.Random(seed)
    made = copy.deepcopy(source)
    for _ in range(rng.randint(1, 3)):
        at, key = places(made, rng)
        match rng.randrange(4):
            case 0:
                at[key] = rng.choice(VALUES)
            case 1:
                other, where = places(source, rng)
                at[key] = copy.deepcopy(other[where])
            case 2 if isinstance(at, dict):
                at[rng.choice(("type", "vocab", "content", "pattern", "x"))] = at.pop(key)
            case _:
                del at[key]
    raw = bytearray(json.dumps(made).encode())
    if seed % 8 == 0:
        at = rng.randrange(len(raw))
        raw[at : at + rng.randint(0, 40)] = rng.choice((b"", b"\xff", b"{", b'"', b"9" * 40))
    return bytes(raw)


def wrong_with(raw: bytes) -> str:
    """What is wrong with how a file is taken; empty when it is let in or refused as it should be."""
    started = time.thread_time()
    try:
        tokenizer = Tokenizer(raw)
        tokenizer.decode(tokenizer.encode("Hello, w\N{LATIN SMALL LETTER O WITH DIAERESIS}rld <|im_end|> 123"))
    except FerrumError as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            return f"not one line: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    taken = time.thread_time() - started
    return f"{taken:.1f} s" if taken > SECOND else ""


@pytest.mark.timeout(60 + MUTANTS // 20)
def test_mutants_are_let_in_or_refused() -> None:
    source = small()
    assert wrong_with(json.dumps(source).encode()) == "" and Tokenizer(json.dumps(source).encode()).encode("Hello")
    wrong = {seed: found for seed in range(MUTANTS) if (found := wrong_with(mutant(source, seed)))}
    assert wrong == {}

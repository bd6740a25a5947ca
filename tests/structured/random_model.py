"""A model that knows nothing: tokens of a real vocabulary at temperature 1, with a liking for what ends things."""

from __future__ import annotations

import random
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ferrum.pack.schema import TextRecord
from ferrum.structured.masks import GrammarMask, GrammarMasks
from ferrum.structured.model import ModelGrammars
from ferrum.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "graphs" / "tiny"
PADDED = 800  # ids of the model; the tokenizer knows 768
END = 761
ENDINGS = {'"': 4.5, "}": 2.5, "]": 2.5, ",": -1.0}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer((TINY / "model" / "tokenizer.json").read_bytes())


@dataclass
class RandomModel:
    """Follows grammars. ``text``: what a pack says of a model. ``likes``: texts that it writes now and then, where it may."""

    likes: tuple[str, ...] = ()
    text: TextRecord = field(default_factory=lambda: TextRecord(eos_token_ids=[END]))
    vocab: Tokenizer = field(default_factory=tokenizer)

    def __post_init__(self) -> None:
        self.grammars = ModelGrammars(self.vocab, self.text, PADDED)
        self.masks = GrammarMasks(lambda: self.vocab, PADDED, self.text.eos_token_ids)
        scores = np.zeros(PADDED)
        for token in range(self.vocab.vocab_size):
            scores[token] = ENDINGS.get(self.vocab.token_text(token).strip(), 0.0)
        scores[list(self.text.eos_token_ids)] = 4.0
        self._weights = np.exp(scores)

    def like(self, text: TextRecord, likes: tuple[str, ...] = ()) -> RandomModel:
        """Another model over the same vocabulary, which shares this one's process and threads."""
        other = copy(self)
        other.text, other.likes = text, likes
        other.grammars = ModelGrammars(self.vocab, text, PADDED)
        other.grammars._process = self.grammars._process
        return other

    def mask(self, grammar: str) -> GrammarMask:
        mask = self.masks(grammar)
        self.masks.wait([mask], 60)
        assert mask.ready
        if mask.error is not None:
            raise mask.error
        return mask

    def answer(self, grammar: str, seed: int, *, most: int = 600) -> tuple[str, bool]:
        """A text and whether it came to its end."""
        tokens, ended = self.tokens(grammar, seed, most=most)
        return b"".join(map(self.vocab.token_bytes, tokens)).decode("utf-8", "replace"), ended

    def tokens(self, grammar: str, seed: int, *, most: int = 600, skip: bool = True) -> tuple[list[int], bool]:
        """``skip``: tokens without a choice are taken as they are."""
        rng = random.Random(seed)
        mask = self.mask(grammar)
        row = np.zeros(-(-PADDED // 32), np.uint32)
        tokens: list[int] = []
        while len(tokens) < most:
            forced = mask.forced() if skip and tokens else []
            for token in forced or self._liked(mask, rng) or [self._draw(mask, row, rng)]:
                if token in self.text.eos_token_ids:
                    return tokens, True
                tokens.append(token)
                mask.accept(token)
            self.masks.begin([mask])
            self.masks.wait([mask], 60)
            if mask.error is not None:
                raise mask.error
        return tokens, False

    def _liked(self, mask: GrammarMask, rng: random.Random) -> list[int]:
        if not self.likes or rng.random() > 0.1:
            return []
        tokens = self.vocab.encode(rng.choice(self.likes), special=False)
        return tokens if mask._matcher.validate_tokens(tokens) == len(tokens) else []

    def _draw(self, mask: GrammarMask, row: Any, rng: random.Random) -> int:
        mask.fill(row)
        allowed = np.unpackbits(row.view(np.uint8), bitorder="little")[:PADDED].astype(bool)
        assert allowed.any() and not allowed[self.vocab.vocab_size :].any(), "a token without a text is allowed"
        weights = np.where(allowed, self._weights, 0.0)
        return int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))

    def close(self) -> None:
        self.masks.close()
        self.grammars.close()

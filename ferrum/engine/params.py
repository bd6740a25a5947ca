"""The parameters of a request: what it may ask of the sampler. ``sampling`` says what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ferrum.engine.thinking import ThinkingBudget
from ferrum.errors import FerrumError
from ferrum.pack.step import GREEDY_BELOW, MAX_LOGPROBS
from ferrum.structured.wish import Structured

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_CHOICES = 64
MAX_GRAMMAR_CHARS = 1 << 21
MAX_TOKEN_ID = (1 << 31) - 1

# field: (smallest, largest, whole numbers only)
RANGES: Mapping[str, tuple[float, float, bool]] = {
    "max_tokens": (1, MAX_TOKEN_ID, True),
    "min_tokens": (0, MAX_TOKEN_ID, True),
    "temperature": (0.0, 100.0, False),
    "top_k": (-1, MAX_TOKEN_ID, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, False),
    "repetition_penalty": (0.01, 100.0, False),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "seed": (-(1 << 63), (1 << 64) - 1, True),
    "logprobs": (0, MAX_LOGPROBS, True),
    "n": (1, MAX_CHOICES, True),
}
OPTIONAL = frozenset({"max_tokens", "seed", "logprobs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is continued. Raises FerrumError (``where`` is the field's name) for a value out of range.

    ``max_tokens`` None: until the context is full. ``min_tokens``: stop tokens are banned before. ``temperature`` 0 is
    greedy. ``top_k`` 0 or -1 is off; ``top_p`` 1, ``min_p`` 0, ``repetition_penalty`` 1 and the other penalties 0 are off.
    ``seed`` None: a fresh random seed. ``stop``: strings that end the text and are not part of it. ``logprobs``: None is
    off, 0 the chosen token only, up to 20 alternatives. ``n``: choices; choice i > 0 of a seeded request has the seed
    ``seed + i * 0x9E3779B97F4A7C15`` modulo 2**64. ``structured``: the form that the answer must have; ``LLM`` makes ``grammar``
    of it, which is the text that an engine takes. ``thinking``: a bound on reasoning, None is no bound.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    structured: Structured | None = None
    grammar: str = ""
    thinking: ThinkingBudget | None = None

    def __post_init__(self) -> None:
        for name, (low, high, whole) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            _check_number(name, value, low, high, whole)
            if not whole:
                object.__setattr__(self, name, float(value))
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        if not isinstance(self.ignore_eos, bool):
            raise _invalid("ignore_eos", "must be true or false")
        if not isinstance(self.grammar, str) or len(self.grammar) > MAX_GRAMMAR_CHARS:
            raise _invalid("grammar", f"must be a text of at most {MAX_GRAMMAR_CHARS} characters")
        if self.structured is not None and not isinstance(self.structured, Structured):
            raise _invalid("structured", "must be a Structured")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", f"must not exceed max_tokens ({self.max_tokens})")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def penalized(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def seed_of(self, index: int, fresh: int) -> int:
        """The 64-bit seed of choice ``index``; ``fresh`` is used when the request has none."""
        base = fresh if self.seed is None else self.seed
        return (base + index * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF

    def largest_token_id(self) -> tuple[int, str]:
        """The largest token id named anywhere, with its field: the engine checks it against the vocabulary."""
        named = [(t, "logit_bias") for t in self.logit_bias] + [(t, "stop_token_ids") for t in self.stop_token_ids]
        if self.thinking is not None:
            named += [(self.thinking.start, "thinking"), (self.thinking.end, "thinking")]
        return max(named, default=(-1, ""))


def _invalid(name: str, problem: str) -> FerrumError:
    return FerrumError("invalid-parameter", f"{name} {problem}", name)


def _check_number(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    kind = "a whole number" if whole else "a number"
    allowed = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or math.isnan(value) or not low <= value <= high:
        raise _invalid(name, f"must be {kind} from {low} to {high}")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or len(items) > MAX_STOP_STRINGS:
        raise _invalid(name, f"must be a string or at most {MAX_STOP_STRINGS} strings")
    if not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARS for s in items):
        raise _invalid(name, f"must hold strings of 1 to {MAX_STOP_CHARS} characters")
    return tuple(items)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)) or len(value) > MAX_STOP_TOKEN_IDS:
        raise _invalid(name, f"must be at most {MAX_STOP_TOKEN_IDS} token ids")
    for token in value:
        _check_number(name, token, 0, MAX_TOKEN_ID, True)
    return tuple(sorted(value))


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping) or len(value) > MAX_LOGIT_BIAS:
        raise _invalid("logit_bias", f"must map at most {MAX_LOGIT_BIAS} token ids to numbers")
    for token, bias in value.items():
        _check_number("logit_bias", token, 0, MAX_TOKEN_ID, True)
        _check_number("logit_bias", bias, -100, 100, False)
    return {token: float(bias) for token, bias in value.items()}

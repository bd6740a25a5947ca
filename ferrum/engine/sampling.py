"""Sampling: the parameters of a request, and the numpy reference that every device's sampler is compared with.

Order of operations on one row of raw logits (float32):

1. mask: tokens whose bit is 0 become -inf.
2. ``logit_bias``: added.
3. repetition penalty over prompt and output: positive logits are divided by it, others multiplied (Keskar et al.,
   CTRL, 2019, as in Hugging Face's ``RepetitionPenaltyLogitsProcessor``).
4. frequency and presence penalties over the output: ``logit -= count * frequency + (count > 0) * presence`` (OpenAI).
5. temperature 0: the largest logit, the lowest id among equals. Otherwise ``x = logit / temperature``, then over tokens
   sorted by (x descending, id ascending): the first ``top_k``; of those the shortest prefix whose probability reaches
   ``top_p``; of those the tokens with ``p >= min_p * p_max``. The token is the first whose cumulative weight exceeds
   ``u * total``. With none of top_k, top_p, min_p set the cumulative sum runs in token-id order, without sorting.

Logits and the steps 1 to 4 are float32; weights ``exp(x - x_max)`` and their sums are float64.

The uniform number of a row: Philox4x32-10 (Salmon et al., SC'11) with key ``(seed lo32, seed hi32)`` and counter
``(draw lo32, draw hi32, 0, 0)``; ``u = (x0 >> 8) * 2**-24`` with ``x0`` the first output word, so that u is in [0, 1) and
exact in float32. ``draw`` is the index of the output token in its sequence: a seeded request gives the same tokens
whatever else is in the batch.

Log-probabilities are those of the raw distribution, before step 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import MAX_LOGPROBS, StepBuffers
from ferrum.errors import FerrumError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_CHOICES = 64
MAX_GRAMMAR_CHARS = 1 << 20
MAX_TOKEN_ID = (1 << 31) - 1
GREEDY_BELOW = 1e-5  # a smaller temperature is greedy: logits divided by it would leave float32's range
BANNED_LOGIT = -1e30  # finite, so that penalties and temperatures keep it finite; exp of it is 0

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
    ``seed + i * 0x9E3779B97F4A7C15`` modulo 2**64. ``grammar``: text for the engine's mask provider.
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
    grammar: str = ""

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


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four 32-bit words."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(seed: int, draw: int) -> float:
    """The random number in [0, 1) of output token ``draw`` under ``seed``, a multiple of 2**-24."""
    mask = 0xFFFFFFFF
    words = philox((seed & mask, seed >> 32 & mask), (draw & mask, draw >> 32 & mask, 0, 0))
    return (words[0] >> 8) * 2.0**-24


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[vocab_size]`` natural log-probabilities."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - math.log(float(np.exp(shifted).sum()))
    return result


def choose(x: NDArray[np.float32], top_k: int, top_p: float, min_p: float, u: float) -> int:
    """A token from logits already divided by the temperature, by inverse CDF at ``u``."""
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        order = np.arange(x.size)
    else:
        order = np.argsort(-x, kind="stable")
        if top_k > 0:
            order = order[:top_k]
    weights = np.exp(x[order].astype(np.float64) - float(x.max()))
    if top_p < 1.0:
        cumulative = np.cumsum(weights)
        keep = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
        order, weights = order[:keep], weights[:keep]
    if min_p > 0.0:
        keep = int(np.count_nonzero(weights >= min_p * weights[0]))
        order, weights = order[:keep], weights[:keep]
    cumulative = np.cumsum(weights)
    picked = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return int(order[min(picked, order.size - 1)])


def adjust_row(logits: NDArray[np.float32], buffers: StepBuffers, row: int) -> NDArray[np.float32]:
    """A copy of ``logits`` ``[vocab_size]`` after mask, bias and penalties (steps 1 to 4 above)."""
    x = logits.astype(np.float32, copy=True)
    if buffers.use_mask[row]:
        bits = np.unpackbits(buffers.mask[row].view(np.uint8), bitorder="little")[: x.size]
        x[bits == 0] = -np.inf
    for i in range(buffers.bias_start[row], buffers.bias_start[row + 1]):
        x[buffers.bias_token[i]] += buffers.bias_value[i]
    begin, end = buffers.penalty_start[row], buffers.penalty_start[row + 1]
    if begin < end:
        tokens, count = buffers.penalty_token[begin:end], buffers.penalty_count[begin:end].astype(np.float32)
        repetition = buffers.repetition_penalty[row]
        picked = x[tokens]
        picked = np.where(picked > 0, picked / repetition, picked * repetition).astype(np.float32)
        presence = np.where(count > 0, buffers.presence_penalty[row], np.float32(0))
        x[tokens] = picked - (count * buffers.frequency_penalty[row] + presence)
    return x


def sample_reference(logits: NDArray[np.float32], buffers: StepBuffers) -> None:
    """Fill the outputs of ``buffers`` from raw ``logits`` ``[num_samples, vocab_size]``."""
    for row in range(buffers.num_samples):
        raw = logits[row]
        x = adjust_row(raw, buffers, row)
        temperature = buffers.temperature[row]
        if temperature < GREEDY_BELOW:
            token = int(np.argmax(x))
        else:
            u = uniform(int(buffers.seed[row]), int(buffers.draw[row]))
            top_k, top_p, min_p = int(buffers.top_k[row]), float(buffers.top_p[row]), float(buffers.min_p[row])
            token = choose(x / temperature, top_k, top_p, min_p, u)
        buffers.out_token[row] = token
        wanted = int(buffers.num_logprobs[row])
        if wanted >= 0:
            logprobs = log_softmax(raw)
            buffers.out_logprob[row] = logprobs[token]
            top = np.argsort(-raw, kind="stable")[:wanted]
            buffers.top_token[row, : top.size] = top
            buffers.top_logprob[row, : top.size] = logprobs[top]


def allow_bits(tokens: Iterable[int], row: NDArray[np.uint32]) -> None:
    """Write into one row of ``StepBuffers.mask`` that exactly ``tokens`` are allowed."""
    row[:] = 0
    for token in tokens:
        row[token >> 5] |= np.uint32(1 << (token & 31))

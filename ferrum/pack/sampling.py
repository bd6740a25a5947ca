"""Sampling: what the parameters of a request mean, and the numpy reference that every device's sampler is compared with.

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
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ferrum.pack.step import GREEDY_BELOW, Sampling, SamplingInputs

BANNED_LOGIT = -1e30  # finite, so that penalties and temperatures keep it finite; exp of it is 0


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


def adjust_row(logits: NDArray[np.float32], step: SamplingInputs, row: int) -> NDArray[np.float32]:
    """A copy of ``logits`` ``[vocab_size]`` after mask, bias and penalties (steps 1 to 4 above)."""
    x = logits.astype(np.float32, copy=True)
    if step.use_mask[row]:
        bits = np.unpackbits(step.mask[row].view(np.uint8), bitorder="little")[: x.size]
        x[bits == 0] = -np.inf
    for i in range(step.bias_start[row], step.bias_start[row + 1]):
        x[step.bias_token[i]] += step.bias_value[i]
    begin, end = step.penalty_start[row], step.penalty_start[row + 1]
    if begin < end:
        tokens, count = step.penalty_token[begin:end], step.penalty_count[begin:end].astype(np.float32)
        repetition = step.repetition_penalty[row]
        picked = x[tokens]
        picked = np.where(picked > 0, picked / repetition, picked * repetition).astype(np.float32)
        presence = np.where(count > 0, step.presence_penalty[row], np.float32(0))
        x[tokens] = picked - (count * step.frequency_penalty[row] + presence)
    return x


def sample_reference(logits: NDArray[np.float32], step: Sampling) -> None:
    """Fill the outputs of ``step`` from raw ``logits`` ``[rows, vocab_size]``."""
    for row, raw in enumerate(logits):
        x = adjust_row(raw, step, row)
        temperature = step.temperature[row]
        if temperature < GREEDY_BELOW:
            token = int(np.argmax(x))
        else:
            u = uniform(int(step.seed[row]), int(step.draw[row]))
            top_k, top_p, min_p = int(step.top_k[row]), float(step.top_p[row]), float(step.min_p[row])
            token = choose(x / temperature, top_k, top_p, min_p, u)
        step.out_token[row] = token
        wanted = int(step.num_logprobs[row])
        if wanted >= 0:
            logprobs = log_softmax(raw)
            step.out_logprob[row] = logprobs[token]
            top = np.argsort(-raw, kind="stable")[:wanted]
            step.top_token[row, : top.size] = top
            step.top_logprob[row, : top.size] = logprobs[top]


def allow_bits(tokens: Iterable[int], row: NDArray[np.uint32]) -> None:
    """Write into one row of a step's ``mask`` that exactly ``tokens`` are allowed."""
    row[:] = 0
    for token in tokens:
        row[token >> 5] |= np.uint32(1 << (token & 31))

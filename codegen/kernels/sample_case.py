"""Trials of the sampling kernels: rows of requests that ask for different things, and how close the answers are."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.cases import F32, error, normal
from ferrum.pack.sampling import choose, log_softmax, uniform
from ferrum.pack.step import MAX_LOGPROBS

PEAK = np.dtype([("value", "<f4"), ("id", "<i4")])
# (temperature, top-k, top-p, min-p) of the rows in turn
_LIMITS = ((0.0, 0, 1.0, 0.0), (0.8, 0, 1.0, 0.0), (0.7, 20, 0.8, 0.0), (1.5, 0, 0.95, 0.0), (0.0, 0, 1.0, 0.0),
           (3.0, 0, 1.0, 0.1), (0.9, 50, 1.0, 0.0), (0.05, 7, 0.9, 0.02))  # fmt: skip
_LOGPROBS = (MAX_LOGPROBS, 0, -1, 5, 3, -1, 1, MAX_LOGPROBS)
# A sum of float32 exponentials may cross a border elsewhere than one of float64: draws so near to each other are the same.
_NEAR = 1e-5


def peaks_of(x: F32, chunk: int) -> NDArray[Any]:
    """The largest logit of each chunk and the first place where it is."""
    best = [first + int(np.argmax(x[first : first + chunk])) for first in range(0, len(x), chunk)]
    return np.array([(x[i], i) for i in best], PEAK)


class SampleCase:
    """``rows`` of logits, plain greedy requests at first. ``step``: the arrays of a step, as the reference reads them."""

    def __init__(self, random: np.random.Generator, vocab: int, rows: int) -> None:
        self.random, self.vocab, self.rows = random, vocab, rows
        self.logits = 3 * normal(random, rows, vocab)
        self.logits[1, : vocab // 2] = self.logits[1].max() + 1  # equal ones: the lowest id comes first
        zeros, ones, start = np.zeros(rows, np.float32), np.ones(rows, np.float32), np.zeros(rows + 1, np.int32)
        self.step: Any = SimpleNamespace(
            temperature=zeros, min_p=zeros.copy(), presence_penalty=zeros.copy(), frequency_penalty=zeros.copy(), top_p=ones,
            repetition_penalty=ones.copy(), top_k=np.zeros(rows, np.int32), use_mask=np.zeros(rows, np.int32),
            seed=random.integers(0, 1 << 63, rows).astype(np.uint64), draw=np.arange(rows, dtype=np.uint64),
            num_logprobs=np.array([_LOGPROBS[r % len(_LOGPROBS)] for r in range(rows)], np.int32),
            penalty_start=start, penalty_token=np.zeros(1, np.int32), penalty_count=np.zeros(1, np.int32),
            bias_start=start.copy(), bias_token=np.zeros(1, np.int32), bias_value=np.zeros(1, np.float32),
            mask=np.zeros((rows, -(-vocab // 32)), np.uint32),
        )  # fmt: skip
        shape = (rows, MAX_LOGPROBS)
        self.outputs: dict[str, NDArray[np.generic]] = {
            "output:out_token": np.full(rows, -1, np.int32), "output:out_logprob": np.zeros(rows, np.float32),
            "output:top_token": np.full(shape, -1, np.int32), "output:top_logprob": np.zeros(shape, np.float32),
        }  # fmt: skip

    def inputs(self, names: Iterable[str]) -> dict[str, NDArray[np.generic]]:
        return {f"input:{name}": getattr(self.step, name) for name in names}

    def adjust(self, rows: Iterable[int]) -> None:
        """Masks, biases (a token twice among them) and penalties for ``rows``."""
        s, each = self.step, min(20, self.vocab)
        biased, punished = [], []
        for row in rows:
            s.use_mask[row] = 1
            s.mask[row] = self.random.integers(0, 1 << 32, s.mask.shape[1])
            biased.append(np.append(self.random.permutation(self.vocab)[:each], [3, 3]))
            punished.append(self.random.permutation(self.vocab)[:each])
            s.bias_start[row + 1 :] += each + 2
            s.penalty_start[row + 1 :] += each
            s.repetition_penalty[row], s.presence_penalty[row], s.frequency_penalty[row] = 1.3, 0.7, -0.4
        s.bias_token, s.penalty_token = (np.concatenate(ids).astype(np.int32) for ids in (biased, punished))
        s.bias_value = 5 * normal(self.random, len(s.bias_token))
        s.penalty_count = self.random.integers(0, 4, len(s.penalty_token)).astype(np.int32)

    def limit(self) -> None:
        for row in range(self.rows):
            s, limits = self.step, _LIMITS[row % len(_LIMITS)]
            s.temperature[row], s.top_k[row], s.top_p[row], s.min_p[row] = limits

    def tokens(self, adjusted: F32, row: int) -> set[int]:
        """What the reference draws, and what it would draw with a random number next to the row's own."""
        s = self.step
        if s.temperature[row] == 0:
            return {int(np.argmax(adjusted))}
        u, limits = uniform(int(s.seed[row]), int(s.draw[row])), (int(s.top_k[row]), float(s.top_p[row]), float(s.min_p[row]))
        return {choose(adjusted / s.temperature[row], *limits, u + off) for off in (-_NEAR, 0.0, _NEAR)}

    def judge(self, adjusted: F32) -> float:
        """The error of log-probabilities; infinity for another token."""
        token, logprob, top, top_logprob = self.outputs.values()
        got, wanted = [], []
        for row in range(self.rows):
            if int(token[row]) not in self.tokens(adjusted[row], row):
                return float("inf")
            count, expected = int(self.step.num_logprobs[row]), log_softmax(self.logits[row])
            best = np.argsort(-self.logits[row], kind="stable")[: max(count, 0)]
            if not np.array_equal(top[row, : len(best)], best) or (top[row, len(best) :] != -1).any():
                return float("inf")
            if count >= 0:
                got += [float(logprob[row]), *map(float, top_logprob[row, : len(best)])]
                wanted += [float(expected[int(token[row])]), *map(float, expected[best])]
        return error(np.array(got, np.float32), np.array(wanted, np.float32))

"""Rows whose sampling parameters are all drawn: what a device's sampler is compared with the reference on."""

from __future__ import annotations

import numpy as np

from ferrum.devices.base import Executor
from ferrum.pack.sampling import allow_bits


def fill_random_rows(executor: Executor, random: np.random.Generator, vocab: int) -> None:
    """One sequence of which every row is sampled, each with parameters of its own."""
    b, n = executor.buffers, 64
    b.num_tokens, b.num_seqs, b.num_samples = n, 1, n
    b.tokens[:n] = random.integers(0, vocab, n)
    b.positions[:n] = b.sample_rows[:n] = range(n)
    b.query_start[:2] = 0, n
    b.context_len[0] = n
    used = -(-n // executor.limits.block_size)
    b.block_table[0, 0, :used] = range(used)
    choices = {
        "temperature": [0, 0.1, 0.7, 1, 2, 50],
        "top_k": [0, 0, 1, 5, 50, vocab, vocab + 9], "top_p": [1, 1, 0, 0.1, 0.5, 0.95],
        "min_p": [0, 0, 0.05, 0.5, 1], "repetition_penalty": [1, 1.2, 0.8], "presence_penalty": [0, 0.5, -2],
        "frequency_penalty": [0, 0.5, -1], "num_logprobs": [-1, 0, 5, 20], "draw": range(1000), "use_mask": [0, 0, 1],
    }  # fmt: skip
    for name, values in choices.items():
        getattr(b, name)[:n] = random.choice(np.array(values), n)
    b.seed[:n] = random.integers(0, 2**64, n, dtype=np.uint64)
    b.penalty_start[0] = b.bias_start[0] = 0
    for row in range(n):
        count = int(random.choice([0, 1, 60]))
        begin = b.penalty_start[row]
        b.penalty_start[row + 1] = begin + count
        b.penalty_token[begin : begin + count] = random.permutation(vocab)[:count]
        b.penalty_count[begin : begin + count] = random.integers(0, 4, count)
        count = int(random.choice([0, 2, 20]))
        begin = b.bias_start[row]
        b.bias_start[row + 1] = begin + count
        b.bias_token[begin : begin + count] = random.permutation(vocab)[:count]
        b.bias_value[begin : begin + count] = random.choice([-100, -1e30, 3, 10], count)
        allow_bits(random.permutation(vocab)[: random.integers(1, vocab)].tolist(), b.mask[row])

"""A step with one sequence, greedy and without penalties, as the self-test and the test of layers run it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Executor, StepBuffers
from ferrum.errors import FerrumError


def block_table(executor: Executor, tokens: int) -> NDArray[np.int32]:
    """The blocks of a sequence of ``tokens`` tokens, [groups, blocks]. Raises FerrumError when there are fewer.

    A window has room for what one sequence holds of it at a time, so a block that was passed may be the same as a later one.
    """
    limits = executor.limits
    blocks = -(-tokens // limits.block_size)
    if blocks > min(limits.num_blocks, limits.max_blocks_per_seq):
        raise FerrumError(
            "memory-too-small", f"a self-test case needs {blocks} KV blocks", "verify", "give the self-test more KV cache memory"
        )
    counts = limits.num_blocks, *(group.count for group in limits.groups)
    return np.array([np.arange(blocks) % count for count in counts], np.int32)


def chunks(executor: Executor, tokens: list[int]) -> Iterator[tuple[int, list[int], bool]]:
    """A prompt in pieces that fit into a step: (position of the first token, tokens, whether it is the last piece)."""
    largest = executor.limits.max_tokens
    for start in range(0, len(tokens), largest):
        yield start, tokens[start : start + largest], start + largest >= len(tokens)


def describe(executor: Executor, tokens: list[int], start: int, table: NDArray[np.int32], sample: bool) -> None:
    """Fill the buffers; ``start`` is the position of the first token, ``sample`` asks for the last one's logits."""
    b: StepBuffers = executor.buffers
    n = len(tokens)
    b.num_tokens, b.num_seqs = n, 1
    b.tokens[:n] = tokens
    b.positions[:n] = np.arange(start, start + n, dtype=np.int32)
    b.query_start[:2] = (0, n)
    b.context_len[0] = start + n
    b.block_table[0, :, : table.shape[1]] = table
    b.sample([n - 1] if sample else [])

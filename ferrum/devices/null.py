"""A device without hardware: its KV memory holds token ids, and its logits are a hash of the tokens it reads back.

Every token of a step is written to its slot; the history of a sampled row is then read through the block table. An
engine that mixes blocks, forgets to recompute after preemption or shares a wrong prefix therefore gets other tokens than
``null_logits`` gives for the plain history. Windows hold positions beside the tokens, and what a query sees of them must be that
part of the history. The device also checks the contract of ``StepBuffers`` at every step and raises AssertionError when the
engine breaks it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferrum.devices.base import Executor, Limits, StepBuffers
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import blocks_within, per_sequence, windows
from ferrum.pack.programs import kv_groups
from ferrum.pack.sampling import sample_reference

if TYPE_CHECKING:
    from ferrum.pack.schema import Manifest

DEFAULT_NUM_BLOCKS = 1024
STALE = -1  # content of a slot that was never written


def null_logits(history: ArrayLike, vocab_size: int) -> NDArray[np.float32]:
    """Logits ``[vocab_size]`` in [-8, 8) after the tokens ``history``: SHA-256 of them, spread by splitmix64."""
    data = np.ascontiguousarray(history, dtype="<i4").tobytes()
    seed = np.uint64(int.from_bytes(hashlib.sha256(data).digest()[:8], "little"))
    x = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-20) - np.float32(8.0)).astype(np.float32)


class NullExecutor:
    """An ``Executor`` over ``limits`` that needs no model."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffers = StepBuffers(limits)
        self.memory = np.full((limits.num_blocks, limits.block_size), STALE, np.int32)
        assert all(group.kind == "window" for group in limits.groups), "only windows beside blocks"
        self.windows = [np.full((group.count, limits.block_size), STALE, np.int64) for group in limits.groups]
        self.closed = False
        self._logits = np.zeros((limits.max_samples, limits.vocab_size), np.float32)

    def step(self) -> None:
        assert not self.closed, "a step after close"
        b = self.buffers
        self._check(b)
        for s in range(b.num_seqs):
            begin, end = int(b.query_start[s]), int(b.query_start[s + 1])
            positions, tokens = b.positions[begin:end], b.tokens[begin:end]
            self.memory[self._places(s, positions)] = tokens
            for group, memory in enumerate(self.windows, start=1):
                memory[self._places(s, positions, group)] = self._seen_as(positions, tokens)
            self._check_windows(s)
        starts = b.query_start[: b.num_seqs + 1]
        for row in range(b.num_samples):
            at = int(b.sample_rows[row])
            s = int(np.searchsorted(starts, at, side="right")) - 1
            history = self._places(s, np.arange(int(b.positions[at]) + 1, dtype=np.int32))
            self._logits[row] = null_logits(self.memory[history], self.limits.vocab_size)
        sample_reference(self.logits(), b)

    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self.buffers.num_samples]

    def copy_block(self, source: int, target: int) -> None:
        self.memory[target] = self.memory[source]

    def copy_place(self, group: int, source: int, target: int) -> None:
        self.windows[group][target] = self.windows[group][source]

    def close(self) -> None:
        self.closed = True

    def _places(self, s: int, positions: NDArray[np.int32], group: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        size = self.limits.block_size
        return self.buffers.block_table[s, group, positions // size], positions % size

    def _seen_as(self, positions: NDArray[np.int32], tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """What a window holds of a token."""
        return positions.astype(np.int64) * self.limits.vocab_size + tokens

    def _first_seen(self, s: int, window: int) -> int:
        """The position of the oldest token that a query of this step sees."""
        return max(0, int(self.buffers.positions[self.buffers.query_start[s]]) - window + 1)

    def _check_windows(self, s: int) -> None:
        """Everything that the queries of a sequence see is what was computed."""
        end = int(self.buffers.context_len[s])
        for number, (group, memory) in enumerate(zip(self.limits.groups, self.windows, strict=True), start=1):
            at = np.arange(self._first_seen(s, group.window), end, dtype=np.int32)
            expected = self._seen_as(at, self.memory[self._places(s, at)])
            assert (memory[self._places(s, at, number)] == expected).all(), "a window does not hold what was computed"

    def _check(self, b: StepBuffers) -> None:
        limits = self.limits
        assert 0 < b.num_tokens <= limits.max_tokens and 0 < b.num_seqs <= limits.max_seqs, "a step out of its limits"
        assert 0 <= b.num_samples <= limits.max_samples, "too many samples"
        starts = b.query_start[: b.num_seqs + 1]
        assert starts[0] == 0 and starts[-1] == b.num_tokens and (np.diff(starts) > 0).all(), "query_start"
        tokens = b.tokens[: b.num_tokens]
        assert (tokens >= 0).all() and (tokens < limits.vocab_size).all(), "a token out of the vocabulary"
        rows = b.sample_rows[: b.num_samples]
        assert (np.diff(rows) > 0).all() and (rows >= 0).all() and (rows < b.num_tokens).all(), "sample_rows"
        for starts_of_lists in (b.penalty_start, b.bias_start):
            list_starts = starts_of_lists[: b.num_samples + 1]
            assert list_starts[0] == 0 and (np.diff(list_starts) >= 0).all() and list_starts[-1] <= limits.max_adjust
        self._check_blocks(b)

    def _check_blocks(self, b: StepBuffers) -> None:
        """Positions follow each other, and no block that is written in this step is seen by another sequence."""
        for s in range(b.num_seqs):
            positions = b.positions[b.query_start[s] : b.query_start[s + 1]]
            assert (np.diff(positions) == 1).all() and positions[0] >= 0, "positions"
            assert b.context_len[s] == positions[-1] + 1, "context_len"
            assert b.context_len[s] <= self.limits.max_blocks_per_seq * self.limits.block_size, "a sequence of too many blocks"
        self._check_group(b, 0, self.limits.num_blocks, 0)
        for number, group in enumerate(self.limits.groups, start=1):
            self._check_group(b, number, group.count, group.window)

    def _check_group(self, b: StepBuffers, number: int, count: int, window: int) -> None:
        size = self.limits.block_size
        written: dict[int, int] = {}
        seen: list[NDArray[np.int32]] = []
        for s in range(b.num_seqs):
            position = int(b.positions[b.query_start[s]])
            first = self._first_seen(s, window) // size if window else 0
            blocks = b.block_table[s, number, first : -(-int(b.context_len[s]) // size)]
            assert (blocks >= 0).all() and (blocks < count).all(), "a block out of the pool"
            assert np.unique(blocks).size == len(blocks), "a block twice in one table"
            seen.append(blocks)
            written.update((int(block), s) for block in blocks[position // size - first :])
        for s, blocks in enumerate(seen):
            assert all(written.get(int(block), s) == s for block in blocks), "a block is written while another sequence uses it"


class NullDevice:
    """Loads the sizes of a pack and nothing else."""

    name = "null"

    def load(self, pack: object, options: DeviceOptions) -> Executor:
        manifest: Manifest = pack.manifest  # type: ignore[attr-defined]
        groups = kv_groups(manifest)
        max_model_len = min(options.max_model_len or manifest.model.max_model_len, manifest.model.max_model_len)
        limits = Limits(
            max_tokens=options.max_tokens,
            max_seqs=options.max_seqs,
            max_samples=options.max_samples or options.max_seqs,
            num_blocks=DEFAULT_NUM_BLOCKS,
            block_size=groups[0].unit,
            max_blocks_per_seq=-(-max_model_len // groups[0].unit),
            vocab_size=manifest.model.vocab_size,
        )
        if options.kv_cache_bytes:
            counts = tuple(max(count, 1) for count in blocks_within(groups, limits, options.kv_cache_bytes))
        else:
            counts = DEFAULT_NUM_BLOCKS, *(per_sequence(group, limits) * limits.max_seqs for group in groups[1:])
        return NullExecutor(replace(limits, num_blocks=counts[0], groups=windows(groups, counts)))

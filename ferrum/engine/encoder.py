"""Texts in, embeddings out: what the engine is for a pack that only embeds.

Nothing is kept between steps, so there is no cache and nothing to preempt: a request is a sequence whose only step is its whole
prompt. A step takes those that came first, as many as fit, and gives one row for each.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Executor
from ferrum.engine.options import EngineOptions
from ferrum.engine.reports import EngineStats, queue_full
from ferrum.engine.tokens import checked_tokens
from ferrum.errors import FerrumError


@dataclass(frozen=True)
class Row:
    """The embedding of a request, float32: all numbers of it, or as many as were asked for, at length 1."""

    request_id: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Waiting:
    tokens: array[int]
    dimensions: int


def shortened(row: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first numbers of an embedding, at length 1 again; a row of zeros stays one. 0: the whole row as it is."""
    if not dimensions:
        return row
    first = row[:dimensions]
    length = np.sqrt(np.sum(first * first, dtype=np.float64))
    return (first / (length or 1.0)).astype(np.float32)


class Encoder:
    """Batches whole sequences over one executor. Not thread-safe: one thread calls everything. ``failures`` stays empty: what can
    be refused is refused when it is added."""

    def __init__(self, executor: Executor, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        limits = executor.limits
        self.executor = executor
        self.options = options
        room = min(limits.max_tokens, limits.max_blocks_per_seq * limits.block_size)
        self.max_model_len = min(options.max_model_len or room, room)
        self.max_seqs = min(options.max_num_seqs or limits.max_seqs, limits.max_seqs, limits.max_samples)
        self.max_tokens = max(self.max_model_len, min(options.max_num_batched_tokens or limits.max_tokens, limits.max_tokens))
        self.failures: list[tuple[str, FerrumError]] = []
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._requests = self._rejected = self._steps = self._tokens = self._batch = 0

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self.executor.logits().shape[1])

    def add(self, request_id: str, prompt: Sequence[int], dimensions: int = 0) -> None:
        """Queue a request; ``dimensions`` 0 asks for the whole row. Raises FerrumError: one that can never run ("prompt-empty",
        "prompt-too-long", "invalid-token", "invalid-parameter", "duplicate-request") or that cannot be queued now
        ("queue-full")."""
        try:
            tokens = self._checked(prompt)
            if not 0 <= dimensions <= self.width:
                what = f"the model's embeddings have {self.width} numbers, not {dimensions}"
                raise FerrumError("invalid-parameter", what, "dimensions", f"ask for 1 to {self.width}, or leave it out")
            if request_id in self._waiting:
                raise FerrumError("duplicate-request", "a request of this id is running", "request_id")
            if len(self._waiting) >= self.options.max_queue + self.max_seqs:
                raise queue_full(len(self._waiting))
        except FerrumError:
            self._rejected += 1
            raise
        self._requests += 1
        self._waiting[request_id] = Waiting(tokens, dimensions)

    def step(self) -> list[Row]:
        """Run one step: the rows of all sequences in it. Empty when there is nothing to do."""
        taken = self._take()
        if not taken:
            return []
        self._fill([request.tokens for request in taken.values()])
        self.executor.step()
        self._steps += 1
        self._batch = len(taken)
        self._tokens += self.executor.buffers.num_tokens
        rows = np.array(self.executor.logits(), np.float32)
        return [Row(name, shortened(row, request.dimensions)) for row, (name, request) in zip(rows, taken.items(), strict=True)]

    def abort(self, request_id: str, index: int | None = None) -> bool:
        """Forget a request that waits; False if there is none."""
        return self._waiting.pop(request_id, None) is not None

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def stats(self) -> EngineStats:
        return EngineStats(
            queue_depth=len(self._waiting),
            active_prefill=0,
            active_decode=0,
            current_batch_size=self._batch if self._waiting else 0,
            blocks_total=0,
            blocks_used=0,
            prefix_cache_entries=0,
            num_requests=self._requests,
            num_rejected=self._rejected,
            num_tokens_generated=0,
            num_preemptions=0,
            num_iterations=self._steps,
            num_prefill_tokens=self._tokens,
            num_decode_tokens=0,
            prefix_cache_hits=0,
            prefix_cache_misses=0,
            prefix_cache_evictions=0,
            prefix_cache_saved_tokens=0,
        )

    def close(self) -> None:
        """Forget all requests and free the device."""
        self._waiting.clear()
        self.executor.close()

    def _checked(self, prompt: Sequence[int]) -> array[int]:
        if not len(prompt):
            raise FerrumError("prompt-empty", "the text has no tokens", "prompt", "send at least one token")
        if len(prompt) > self.max_model_len:
            what = f"the text has {len(prompt)} tokens; this model embeds up to {self.max_model_len}"
            raise FerrumError("prompt-too-long", what, "prompt", "shorten it, or embed it in parts")
        return checked_tokens(prompt, self.executor.limits.vocab_size)

    def _take(self) -> dict[str, Waiting]:
        """Those that came first, as many as fit into a step; one always does."""
        taken: dict[str, Waiting] = {}
        room = self.max_tokens
        while self._waiting and len(taken) < self.max_seqs:
            request_id, request = next(iter(self._waiting.items()))
            room -= len(request.tokens)
            if room < 0:
                break
            taken[request_id] = request
            self._waiting.popitem(last=False)
        return taken

    def _fill(self, sequences: list[array[int]]) -> None:
        """Describe a step of these sequences; of each the last row is named, which says whose row is wanted."""
        b, at = self.executor.buffers, 0
        b.query_start[0] = 0
        for s, tokens in enumerate(sequences):
            end = at + len(tokens)
            b.tokens[at:end] = tokens
            b.positions[at:end] = range(len(tokens))
            b.context_len[s] = len(tokens)
            b.query_start[s + 1] = at = end
        b.num_tokens, b.num_seqs = at, len(sequences)
        b.sample([int(end) - 1 for end in b.query_start[1 : len(sequences) + 1]])

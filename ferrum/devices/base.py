"""What the engine asks of a device: one loaded model, one step call, arrays that are allocated once.

A step takes ragged tokens of several sequences, runs one forward pass over the paged KV cache and samples on the
device. All arrays live in ``StepBuffers``: the engine writes the first ``num_*`` entries, calls ``Executor.step`` and
reads the outputs. Nothing is allocated in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.options import MAX_LOGPROBS, DeviceOptions
from ferrum.pack.layers import LayerPoint


@dataclass(frozen=True)
class Limits:
    """Capacities of one loaded model, fixed before the first step.

    ``max_tokens``: tokens in one step. ``max_seqs``: sequences in one step. ``max_samples``: rows whose logits are
    computed in one step. ``num_blocks`` blocks of ``block_size`` KV slots; a sequence uses at most
    ``max_blocks_per_seq``. ``max_adjust``: capacity of the penalty and bias lists over all rows of a step.
    """

    max_tokens: int
    max_seqs: int
    max_samples: int
    num_blocks: int
    block_size: int
    max_blocks_per_seq: int
    vocab_size: int
    max_adjust: int = 1 << 20


@dataclass
class StepBuffers:
    """Inputs and outputs of a step; shapes in comments, capacities from ``Limits``."""

    limits: Limits
    num_tokens: int = 0
    num_seqs: int = 0
    num_samples: int = 0
    # tokens of all sequences one after the other; the query tokens of sequence s are query_start[s]:query_start[s+1]
    tokens: NDArray[np.int32] = field(init=False)  # [max_tokens]
    positions: NDArray[np.int32] = field(init=False)  # [max_tokens], position of each token in its sequence
    query_start: NDArray[np.int32] = field(init=False)  # [max_seqs + 1]
    context_len: NDArray[np.int32] = field(init=False)  # [max_seqs], KV length once this step's tokens are written
    block_table: NDArray[np.int32] = field(init=False)  # [max_seqs, max_blocks_per_seq], physical block ids
    # one entry per sampled row, ascending token index
    sample_rows: NDArray[np.int32] = field(init=False)  # [max_samples], index into tokens
    temperature: NDArray[np.float32] = field(init=False)  # 0 is greedy
    top_k: NDArray[np.int32] = field(init=False)  # 0 is off
    top_p: NDArray[np.float32] = field(init=False)  # 1 is off
    min_p: NDArray[np.float32] = field(init=False)  # 0 is off
    repetition_penalty: NDArray[np.float32] = field(init=False)  # 1 is off; over prompt and output
    presence_penalty: NDArray[np.float32] = field(init=False)  # 0 is off; over output
    frequency_penalty: NDArray[np.float32] = field(init=False)  # 0 is off; over output
    seed: NDArray[np.uint64] = field(init=False)  # with draw: the counter of the random stream
    draw: NDArray[np.uint64] = field(init=False)  # index of the output token in its sequence
    num_logprobs: NDArray[np.int32] = field(init=False)  # -1: none, 0: chosen token only, up to MAX_LOGPROBS
    # rows' lists: row r owns penalty_start[r]:penalty_start[r+1]; count is how often the token is in the output
    penalty_start: NDArray[np.int32] = field(init=False)  # [max_samples + 1]
    penalty_token: NDArray[np.int32] = field(init=False)  # [max_adjust]
    penalty_count: NDArray[np.int32] = field(init=False)  # [max_adjust]
    bias_start: NDArray[np.int32] = field(init=False)  # [max_samples + 1]
    bias_token: NDArray[np.int32] = field(init=False)  # [max_adjust]
    bias_value: NDArray[np.float32] = field(init=False)  # [max_adjust], added to the logit
    # bit v of row r allows token v; read only where use_mask is 1
    use_mask: NDArray[np.int32] = field(init=False)  # [max_samples]
    mask: NDArray[np.uint32] = field(init=False)  # [max_samples, ceil(vocab_size / 32)]
    # outputs
    out_token: NDArray[np.int32] = field(init=False)  # [max_samples]
    out_logprob: NDArray[np.float32] = field(init=False)  # [max_samples], of the raw distribution (before temperature)
    top_token: NDArray[np.int32] = field(init=False)  # [max_samples, MAX_LOGPROBS], descending
    top_logprob: NDArray[np.float32] = field(init=False)  # [max_samples, MAX_LOGPROBS]

    def __post_init__(self) -> None:
        m = self.limits
        n = m.max_samples
        self.tokens = np.zeros(m.max_tokens, np.int32)
        self.positions = np.zeros(m.max_tokens, np.int32)
        self.query_start = np.zeros(m.max_seqs + 1, np.int32)
        self.context_len = np.zeros(m.max_seqs, np.int32)
        self.block_table = np.zeros((m.max_seqs, m.max_blocks_per_seq), np.int32)
        for name in ("sample_rows", "top_k", "num_logprobs", "use_mask", "out_token"):
            setattr(self, name, np.zeros(n, np.int32))
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "out_logprob",
        ):
            setattr(self, name, np.zeros(n, np.float32))
        self.seed = np.zeros(n, np.uint64)
        self.draw = np.zeros(n, np.uint64)
        self.penalty_start = np.zeros(n + 1, np.int32)
        self.bias_start = np.zeros(n + 1, np.int32)
        self.penalty_token = np.zeros(m.max_adjust, np.int32)
        self.penalty_count = np.zeros(m.max_adjust, np.int32)
        self.bias_token = np.zeros(m.max_adjust, np.int32)
        self.bias_value = np.zeros(m.max_adjust, np.float32)
        self.mask = np.zeros((n, (m.vocab_size + 31) // 32), np.uint32)
        self.top_token = np.zeros((n, MAX_LOGPROBS), np.int32)
        self.top_logprob = np.zeros((n, MAX_LOGPROBS), np.float32)


class Executor(Protocol):
    """A model loaded on a device."""

    limits: Limits
    buffers: StepBuffers

    def step(self) -> None:
        """Run the step described by ``buffers`` and fill its outputs. Blocks; releases the GIL."""

    def logits(self) -> NDArray[np.float32]:
        """Raw logits ``[num_samples, vocab_size]`` of the last step; a view that the next step overwrites."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block in all layers (copy on write of a shared block)."""

    def close(self) -> None:
        """Free the memory and stop the worker threads; safe to call twice."""


@runtime_checkable
class OverlappingExecutor(Executor, Protocol):
    """An executor whose steps can be started without waiting, so that the engine works while the device does.

    There are two sets of buffers. ``begin`` starts the step that ``buffers`` describe and makes ``buffers`` the other set;
    ``finish`` waits for the oldest step under way. At most two are under way. ``step`` is both and changes no set.
    """

    def begin(self, ahead: bool = False) -> None:
        """Start a step. ``ahead``: its token i is what the step under way samples in row i; ``buffers.tokens`` is not read."""

    def finish(self) -> StepBuffers:
        """Wait for the oldest step under way; its buffers, whose outputs stay until the second ``begin`` from now."""


class SteppingExecutor(Executor, Protocol):
    """An executor that can stop between the launches of a step, so that ``ferrum verify`` sees what each layer computes."""

    def step_through(self, points: Sequence[LayerPoint]) -> Iterator[NDArray[np.float32]]:
        """Run the step that ``buffers`` describe; after the launch of each point, in order, its value ``[num_tokens, width]``.

        A value is valid until the next one is asked for; the step is complete when the iterator ends. Raises FerrumError for
        a point that is not in the code.
        """


class Device(Protocol):
    name: str

    def load(self, pack: object, options: DeviceOptions) -> Executor:
        """Load an opened ``ferrum.pack.reader.Pack``. Raises FerrumError: wrong machine, or memory that cannot fit."""

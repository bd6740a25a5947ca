"""What the engine asks of a device: one loaded model, one step call, arrays that are allocated once.

A step takes ragged tokens of several sequences, runs one forward pass over the paged KV cache and samples on the
device. All arrays live in ``StepBuffers``: the engine writes the first ``num_*`` entries, calls ``Executor.step`` and
reads the outputs. Nothing is allocated in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.options import DeviceOptions
from ferrum.pack.layers import LayerPoint
from ferrum.pack.step import INPUTS, OUTPUTS, RowCounts, Sampling, StepInputs, shape_of


@dataclass(frozen=True)
class RequestArray:
    """Numbers that a request may bring beside its tokens: float32 ``[rows, width]``, from 1 to ``max_rows`` rows."""

    name: str
    width: int
    max_rows: int


@dataclass(frozen=True)
class StateGroup:
    """What sequences keep beside blocks, in ``count`` places.

    ``slot``: one place for each sequence, which changes with every token. Places that no running sequence has keep copies for
    prefix reuse, made every ``checkpoint`` tokens (in whole blocks; 0: not on the way) and at the prompt's end; how many a device
    has beyond ``max_seqs`` is its budget for them. ``fixed``: one place for each sequence, filled once, from ``inputs`` that the
    request brings. ``window``: a place for each block of ``Limits.block_size`` tokens, until the next query is ``window`` tokens
    past it; there are enough for a token and what it sees.
    """

    kind: Literal["slot", "fixed", "window"]
    count: int
    checkpoint: int = 0
    window: int = 0
    inputs: tuple[RequestArray, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Capacities of one loaded model, fixed before the first step.

    ``max_tokens``: tokens in one step. ``max_seqs``: sequences in one step. ``max_samples``: rows whose logits are
    computed in one step. ``num_blocks`` blocks of ``block_size`` KV slots; a sequence uses at most
    ``max_blocks_per_seq``. ``max_adjust``: capacity of the penalty and bias lists over all rows of a step. ``groups``: what
    sequences keep beside blocks; where it is not empty, the executor is a ``StatefulExecutor``. A model that keeps nothing for
    good has blocks all the same: they name what was computed, and take no memory.
    """

    max_tokens: int
    max_seqs: int
    max_samples: int
    num_blocks: int
    block_size: int
    max_blocks_per_seq: int
    vocab_size: int
    max_adjust: int = 1 << 20
    groups: tuple[StateGroup, ...] = ()


class StepBuffers(StepInputs, Sampling):
    """Inputs and outputs of a step, with the capacities of ``limits``. A device may put its own memory in an array's place."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_tokens = self.num_seqs = self.num_samples = 0
        rows = row_limits(limits)
        for array in (*INPUTS, *OUTPUTS):
            setattr(self, array.name, np.zeros(shape_of(array, rows), array.dtype))

    def sample(self, rows: Sequence[int]) -> None:
        """Ask for the logits of ``rows`` of the step, whose tokens are drawn greedily and without penalties."""
        count = self.num_samples = len(rows)
        self.sample_rows[:count] = rows
        self.top_p[:count] = self.repetition_penalty[:count] = 1
        self.num_logprobs[:count] = -1
        self.temperature[:count] = self.top_k[:count] = self.min_p[:count] = 0
        self.presence_penalty[:count] = self.frequency_penalty[:count] = 0
        self.seed[:count] = self.draw[:count] = self.use_mask[:count] = 0
        for starts in (self.penalty_start, self.bias_start):
            starts[: count + 1] = 0


def row_limits(limits: Limits) -> RowCounts:
    """The most rows of each kind: what memory is sized with."""
    return RowCounts(
        tokens=limits.max_tokens,
        samples=limits.max_samples,
        seqs=limits.max_seqs,
        blocks_per_seq=limits.max_blocks_per_seq,
        adjust=limits.max_adjust,
        mask_words=-(-limits.vocab_size // 32),
        groups=1 + len(limits.groups),
    )


def window_blocks(window: int, chunk: int, block_size: int) -> int:
    """The most blocks of a window that a sequence of up to ``chunk`` tokens in a step holds: for the chunk, for the token after
    it where that is started ahead, and for what the chunk's first query sees before itself."""
    return -(-(window + chunk - 1) // block_size) + 1


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


class StatefulExecutor(Executor, Protocol):
    """An executor whose sequences have places in each of ``limits.groups``. Calls and steps take effect in their order.

    Where a sequence's first token of a step has position 0, its slots count as zeros, whatever they hold.
    """

    def copy_place(self, group: int, source: int, target: int) -> None:
        """Let one place hold what another holds: how a checkpoint of a slot is made and put back."""


class FillingExecutor(StatefulExecutor, Protocol):
    """A stateful executor with ``fixed`` groups."""

    def fill_place(self, group: int, place: int, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Compute the content of a ``fixed`` place from the group's inputs; from none, it has no rows."""


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


def variant_of(executor: Executor) -> str:
    """The variant of the pack's code that runs; empty on devices whose packs have one."""
    return str(getattr(executor, "variant", ""))


class Device(Protocol):
    name: str

    def load(self, pack: object, options: DeviceOptions) -> Executor:
        """Load an opened ``ferrum.pack.reader.Pack``. Raises FerrumError: wrong machine, or memory that cannot fit."""

"""What all launch-table devices share: CUDA, Metal and the emulator.

``code/launches.json`` (``ferrum/pack/launches.py``) says which kernels a step runs, ``Limits`` say how much of everything
there is. From the two follow, once and before the first step, the place of every array and every launch as plain numbers:

- ``StepLayout`` and ``StepMemory``: the buffers "inputs" and "outputs". ``StepBuffers`` are views into them, so the engine
  writes straight into the memory that is copied to the device, or that the device reads where memory is shared.
- ``ArenaLayout``: byte offsets of the slots of the arena.
- ``Recordings``: for every bucket of tokens (1, 2, 4 …) and phase, the launches with grids, sizes and arguments. A device
  records each one once, as a CUDA graph or as encoded commands; ``Recordings.find`` gives the one that serves a step.

A recording made for a bucket serves every step of at most that many tokens: its grids cover the bucket, and kernels read the
true counts from the header of the inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Limits, StepBuffers, row_limits
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import Pools, windows, with_blocks
from ferrum.errors import FerrumError
from ferrum.pack.launches import (
    ALIGNMENT,
    HEADER,
    HEADER_WORDS,
    UPLOADED,
    Arg,
    ExternalArg,
    InputArg,
    IntArg,
    Launch,
    LaunchTable,
    LimitArg,
    OutputArg,
    Slot,
    SlotArg,
    StateArg,
    TableArg,
    ThreadBlocks,
    WeightsArg,
    grid_of,
    taken,
    total,
)
from ferrum.pack.programs import KvGroup, kv_groups, require_program
from ferrum.pack.schema import Manifest
from ferrum.pack.step import OUTPUTS, RowCounts, StepArray, shape_of

Buffer = Literal["weights", "arena", "kv", "inputs", "outputs"]
Phase = Literal["decode", "mixed"]

# Share of the free memory that the KV cache may take when no size is given; the rest is for the driver and for others.
KV_SHARE = 0.9
# What a grid may be on every device: CUDA's limits of y and z, far below Metal's.
_MAX_GRID = ((1 << 31) - 1, 65535, 65535)


def align(n: int, to: int = ALIGNMENT) -> int:
    return -(-n // to) * to


def bucket_rows(limits: Limits, tokens: int) -> RowCounts:
    """The most rows of each kind in a step of at most ``tokens`` tokens: every sequence and every sample has a token."""
    rows = row_limits(limits)
    return msgspec.structs.replace(rows, tokens=tokens, samples=min(tokens, rows.samples), seqs=min(tokens, rows.seqs))


@dataclass(frozen=True)
class Field:
    """An array inside a buffer."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def view(self, memory: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The array inside ``memory``, the bytes of the whole buffer."""
        return memory[self.offset : self.offset + self.nbytes].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class BufferLayout:
    """The arrays of one buffer in their order, each at a multiple of ``ALIGNMENT``."""

    fields: dict[str, Field]
    nbytes: int


def _lay_out(arrays: tuple[StepArray, ...], start: int, rows: RowCounts) -> BufferLayout:
    fields: dict[str, Field] = {}
    at = start
    for array in arrays:
        at = align(at)
        dtype, shape = np.dtype(array.dtype), shape_of(array, rows)
        nbytes = math.prod(shape) * dtype.itemsize
        fields[array.name] = Field(array.name, dtype, shape, at, nbytes)
        at += nbytes
    return BufferLayout(fields, align(at))


@dataclass(frozen=True)
class StepLayout:
    """Where the arrays of ``StepBuffers`` lie in the buffers "inputs" and "outputs"."""

    limits: Limits
    inputs: BufferLayout
    outputs: BufferLayout

    @classmethod
    def of(cls, limits: Limits) -> StepLayout:
        rows = row_limits(limits)
        return cls(limits, _lay_out(UPLOADED, 4 * HEADER_WORDS, rows), _lay_out(OUTPUTS, 0, rows))

    def common_bytes(self, num_seqs: int) -> int:
        """Bytes from the start of the inputs that every step of at most ``num_seqs`` sequences needs.

        The block tables are the last array among them, and only the rows in use are counted.
        """
        table = self.inputs.fields["block_table"]
        return table.offset + table.nbytes // self.limits.max_seqs * num_seqs


class StepMemory:
    """``StepBuffers`` over memory that a device gave: bytes, zeroed here, at least as many as the layout says."""

    def __init__(self, layout: StepLayout, inputs: NDArray[np.uint8], outputs: NDArray[np.uint8]) -> None:
        assert inputs.nbytes >= layout.inputs.nbytes and outputs.nbytes >= layout.outputs.nbytes
        inputs[:] = 0
        outputs[:] = 0
        self.layout = layout
        self.inputs = inputs
        self.outputs = outputs
        self.buffers = StepBuffers(layout.limits)
        for buffer, memory in ((layout.inputs, inputs), (layout.outputs, outputs)):
            for name, field in buffer.fields.items():
                setattr(self.buffers, name, field.view(memory))
        self._header = inputs[: 4 * HEADER_WORDS].view(np.int32)
        self._header[HEADER.index("max_blocks_per_seq")] = layout.limits.max_blocks_per_seq

    def write_header(self) -> None:
        """Put the counts where the kernels read them; called before every step."""
        b, header = self.buffers, self._header
        header[0] = b.num_tokens
        header[1] = b.num_seqs
        header[2] = b.num_samples

    def rare_ranges(self) -> list[tuple[int, int]]:
        """(offset, bytes) of what this step uses of the penalty, bias and mask arrays; empty for most steps."""
        b, fields, n = self.buffers, self.layout.inputs.fields, self.buffers.num_samples
        found: list[tuple[int, int]] = []
        if used := int(b.penalty_start[n]) if n else 0:
            found += [(fields[name].offset, 4 * used) for name in ("penalty_token", "penalty_count")]
        if used := int(b.bias_start[n]) if n else 0:
            found += [(fields[name].offset, 4 * used) for name in ("bias_token", "bias_value")]
        if n and b.use_mask[:n].any():
            mask = fields["mask"]
            found.append((mask.offset, n * mask.shape[1] * 4))
        return found


@dataclass(frozen=True)
class ArenaLayout:
    """Byte offset of every slot, and the (offset, bytes) that are cleared once at load."""

    offsets: tuple[int, ...]
    zero: tuple[tuple[int, int], ...]
    nbytes: int

    @classmethod
    def of(cls, slots: list[Slot], limits: Limits) -> ArenaLayout:
        rows = row_limits(limits)
        offsets: list[int] = []
        zero: list[tuple[int, int]] = []
        at = 0
        for slot in slots:
            size = total(slot.bytes, rows)
            offsets.append(at)
            if slot.zero and size:
                zero.append((at, size))
            at = align(at + size)
        return cls(tuple(offsets), tuple(zero), at)


@dataclass(frozen=True)
class Pointer:
    """A kernel argument: ``offset`` bytes into a buffer."""

    buffer: Buffer
    offset: int


@dataclass(frozen=True)
class ResolvedLaunch:
    """One launch of a recording. An argument is a pointer or an int32. ``early``: see ``ferrum.pack.launches.ThreadBlocks``."""

    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    args: tuple[Pointer | int, ...]
    early: bool = False


@dataclass(frozen=True)
class Recording:
    """The launches of every step of at most ``tokens`` tokens in ``phase``."""

    phase: Phase
    tokens: int
    rows: RowCounts
    launches: tuple[ResolvedLaunch, ...]


def bucket_sizes(max_tokens: int) -> tuple[int, ...]:
    """1, 2, 4 … and ``max_tokens`` itself."""
    sizes = [1 << i for i in range((max_tokens - 1).bit_length())]
    return (*sizes, max_tokens)


class Resolver:
    """From records to numbers, for one set of limits. ``groups``: of the pack's states."""

    def __init__(self, table: LaunchTable, limits: Limits, groups: tuple[KvGroup, ...]) -> None:
        self.table = table
        self.limits = limits
        self.kv = Pools.of(groups, limits)
        self.layout = StepLayout.of(limits)
        self.arena = ArenaLayout.of(table.slots, limits)
        self._limits = row_limits(limits)

    def launch(self, launch: Launch, rows: RowCounts) -> ResolvedLaunch:
        assert isinstance(launch.on, ThreadBlocks)  # read_table lets no other pass
        x, y, z = launch.on.block
        grid = grid_of(launch, rows)
        if any(size > most for size, most in zip(grid, _MAX_GRID, strict=True)):
            what = f"{launch.symbol} needs a grid of {grid}, which no device runs"
            raise FerrumError("invalid-option", what, "--max-num-batched-tokens", "give smaller limits")
        args = tuple(map(self._arg, launch.args))
        return ResolvedLaunch(launch.symbol, grid, (x, y, z), launch.on.shared, args, launch.on.early)

    def recording(self, phase: Phase, tokens: int) -> Recording:
        rows = bucket_rows(self.limits, tokens)
        launches = tuple(self.launch(launch, rows) for launch in self.table.launches if taken(launch, phase, rows))
        return Recording(phase, tokens, rows, launches)

    def _arg(self, arg: Arg) -> Pointer | int:
        inputs, outputs = self.layout.inputs.fields, self.layout.outputs.fields
        match arg:
            case WeightsArg():
                return Pointer("weights", arg.offset)
            case StateArg():
                return Pointer("kv", self.kv.pools[arg.group].start + arg.offset)
            case TableArg():
                return Pointer("inputs", inputs["block_table"].offset + 4 * arg.group * self.limits.max_blocks_per_seq)
            case SlotArg():
                return Pointer("arena", self.arena.offsets[arg.slot])
            case InputArg():
                return Pointer("inputs", 4 * HEADER.index(arg.name) if arg.name in HEADER else inputs[arg.name].offset)
            case OutputArg():
                return Pointer("outputs", outputs[arg.name].offset)
            case IntArg():
                return arg.value
            case LimitArg():
                return int(getattr(self._limits, arg.rows)) * arg.times
            case ExternalArg():
                raise AssertionError(arg)  # read_table lets none pass


class Recordings:
    """All recordings of a loaded model, equal ones once: "decode" (every sequence has one token) and "mixed" steps."""

    def __init__(self, resolver: Resolver) -> None:
        limits = resolver.limits
        self.resolver = resolver
        self.sizes: dict[Phase, tuple[int, ...]] = {
            "decode": bucket_sizes(min(limits.max_seqs, limits.max_tokens)),
            "mixed": bucket_sizes(limits.max_tokens)[1:],  # one token is always decode
        }
        self.all: list[Recording] = []
        self._index: dict[tuple[Phase, int], int] = {}
        known: dict[tuple[int, tuple[ResolvedLaunch, ...]], int] = {}
        for phase, sizes in self.sizes.items():
            for tokens in sizes:
                recording = resolver.recording(phase, tokens)
                key = (tokens, recording.launches)
                if key not in known:
                    known[key] = len(self.all)
                    self.all.append(recording)
                self._index[phase, tokens] = known[key]

    def find(self, num_tokens: int, num_seqs: int) -> int:
        """The index in ``all`` of the recording that serves such a step."""
        phase: Phase = "decode" if num_tokens == num_seqs else "mixed"
        size = 1 << (num_tokens - 1).bit_length()
        return self._index[phase, min(size, self.sizes[phase][-1])]

    def places(self, num_tokens: int, num_seqs: int) -> list[int]:
        """Where in the launch table the launches of the recording are that serves such a step."""
        recording = self.all[self.find(num_tokens, num_seqs)]
        launches = enumerate(self.resolver.table.launches)
        return [index for index, launch in launches if taken(launch, recording.phase, recording.rows)]

    def decode_indices(self) -> list[int]:
        """Indices in ``all`` of the recordings that serve decode steps."""
        return sorted({self._index["decode", tokens] for tokens in self.sizes["decode"]})

    def most_shared(self) -> dict[str, int]:
        """Every kernel that some recording launches, with the most dynamic shared bytes that it is launched with."""
        most: dict[str, int] = {}
        for recording in self.all:
            for launch in recording.launches:
                most[launch.symbol] = max(launch.shared, most.get(launch.symbol, 0))
        return most


def choose_limits(manifest: Manifest, table: LaunchTable, options: DeviceOptions, free: int) -> Limits:
    """Capacities that fit into ``free`` bytes of device memory beside weights, arena and step buffers.

    KV blocks for every sequence at full length, less when memory or the user says so. Raises FerrumError when not even one
    sequence of a useful length fits.
    """
    groups, model, whole = kv_groups(manifest), manifest.model, require_program(manifest).whole
    unit, length = groups[0].unit, options.max_model_len or model.max_model_len
    per_seq = -(-length // unit)
    samples = options.max_samples or options.max_seqs
    tokens = max(options.max_tokens, length) if whole else options.max_tokens
    limits = Limits(
        max_tokens=tokens,
        max_seqs=min(options.max_seqs, tokens),
        max_samples=min(samples, tokens),
        num_blocks=0,
        block_size=unit,
        max_blocks_per_seq=per_seq,
        vocab_size=model.vocab_size,
        max_adjust=max(1 << 16, samples * 1024),
        groups=windows(groups, (0,) * len(groups)),
    )
    if whole:  # nothing is kept
        return replace(limits, num_blocks=per_seq * limits.max_seqs)
    left = max(0, free - manifest.weights_bytes - device_bytes(table, limits))
    budget = options.kv_cache_bytes or int(left * KV_SHARE)
    if budget > left:
        raise out_of_memory(
            f"{budget >> 20} MiB of KV cache do not fit into the {left >> 20} MiB that are left", manifest.target.device
        )
    return with_blocks(limits, groups, budget, options.kv_cache_bytes > 0)


def device_bytes(table: LaunchTable, limits: Limits) -> int:
    """Device memory beside weights and KV blocks: the arena and the step's two buffers."""
    layout = StepLayout.of(limits)
    return ArenaLayout.of(table.slots, limits).nbytes + layout.inputs.nbytes + layout.outputs.nbytes


def out_of_memory(what: str, device: str) -> FerrumError:
    """For every device in the same words."""
    return FerrumError(
        "out-of-memory", what, device, "give a smaller --kv-cache-memory, --max-num-batched-tokens or --max-num-seqs"
    )

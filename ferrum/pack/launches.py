"""The launch table of a pack: member ``code/launches.json``. The CUDA and Metal devices and the emulator run it; a CPU's code
holds the same table as C, made from it.

A step is a list of kernel launches over five buffers. Nothing in it is decided by the host while it runs:

========  ==================================================================================================
buffer    what lies in it
========  ==================================================================================================
weights   the member ``weights`` of the pack
arena     the slots, one after the other in their order, each at a multiple of ``ALIGNMENT``
kv        a pool of blocks for each group of states, one after the other, each at a multiple of ``ALIGNMENT``. On GPUs a pool is
          ``[block][layer][kv head][K 16 x head_dim | V 16 x head_dim]``, layer after layer in each block; on CPUs
          ``[layer][kv head][block]``, all blocks of a head side by side
inputs    ``HEADER_WORDS`` int32 (``HEADER``), then ``UPLOADED`` in order, each at a multiple of ``ALIGNMENT``
outputs   ``OUTPUTS`` in order, each at a multiple of ``ALIGNMENT``
========  ==================================================================================================

Sizes are sums of terms (``Term``): ``ceil(rows / per) * times`` with ``rows`` one of ``Rows``. A recording is made for a
bucket of tokens: ``tokens`` is then the bucket, ``samples`` and ``seqs`` are ``min(bucket, limit)``; memory is sized with
the limits themselves. Kernels read the true counts from the header, so a recording serves every step that fits into it.

A recording takes, in order, the launches whose ``phase`` is ``any`` or its own and whose size class holds its rows:
``decode`` is a step in which every sequence has one token, ``mixed`` any other. Launches run one after the other; each sees
all that the ones before it wrote, but where a CPU leaves out a barrier (``Threads``). The slots with ``zero`` hold counters that
kernels leave at zero: cleared once, at load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ferrum.pack.step import INPUTS, RowCounts, Rows, by_use

LAUNCHES_NAME = "code/launches.json"
LAUNCHES_VERSION = 3
ALIGNMENT = 256

# int32 words at the start of the inputs; the rest of the HEADER_WORDS is zero.
HEADER = ("num_tokens", "num_seqs", "num_samples", "max_blocks_per_seq")
HEADER_WORDS = 64
UPLOADED = by_use(INPUTS)


class Term(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """``ceil(rows / per) * times``. ``rows`` "one" is 1; "mask_words" is ``ceil(vocab_size / 32)``."""

    rows: Rows
    times: int
    per: int = 1


class Slot(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A piece of the arena: its bytes are the sum of its terms, computed from the limits."""

    bytes: list[Term]
    zero: bool = False


class WeightsArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="weights", tag_field="kind"):
    """A pointer: the weights plus ``offset`` bytes."""

    offset: int


class SlotArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="slot", tag_field="kind"):
    """A pointer: the slot's start."""

    slot: int


class StateArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="state", tag_field="kind"):
    """A pointer: a layer's part of the pool of ``group``. ``offset``: the bytes of one block that belong to layers before it.

    On GPUs that is where the layer starts within each block; on CPUs the layer starts at ``offset`` times the pool's blocks.
    """

    offset: int
    group: int = 0


class TableArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="table", tag_field="kind"):
    """A pointer: the first sequence's block ids of ``group``; those of the next one are as many further as all groups have."""

    group: int


class ExternalArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="external", tag_field="kind"):
    """A pointer to memory that is bound by ``name`` at load or by a request. Reserved: no device binds any yet."""

    name: str


class InputArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="input", tag_field="kind"):
    """A pointer: the array ``name`` of ``INPUTS``, or the word ``name`` of ``HEADER``."""

    name: str


class OutputArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="output", tag_field="kind"):
    """A pointer: the array ``name`` of ``OUTPUTS``."""

    name: str


class IntArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="int", tag_field="kind"):
    """An int32."""

    value: int


class LimitArg(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag="limit", tag_field="kind"):
    """An int32: ``times`` that many rows by the limits."""

    rows: Rows
    times: int = 1


Arg = WeightsArg | SlotArg | StateArg | TableArg | ExternalArg | InputArg | OutputArg | IntArg | LimitArg
Sync = Literal["always", "shared", "prefill"]


class ThreadBlocks(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, tag="gpu", tag_field="device"):
    """How a GPU runs a launch: threads of a ``block``, dynamic ``shared`` (threadgroup) bytes.

    ``early``: the kernel itself waits for the launch before it (``griddepcontrol.wait``, sm_90 and later), so it may be started
    before that one has ended. Before its wait it reads weights and inputs only; so the first launch of a recording, which follows
    the copy of the inputs, is never started early.
    """

    block: list[int]
    shared: int
    early: bool = False


class Threads(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, tag="cpu", tag_field="device"):
    """How the threads of a CPU run a launch.

    ``private``: indices of the slot arguments whose rows each thread has of its own when they are few. ``sync``: whether the
    threads wait for each other afterwards: always, only when the rows are shared, or only when a sequence has several new tokens.
    """

    private: list[int]
    sync: Sync


class Launch(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One launch. ``work``: sums of terms; on GPUs the three axes of the grid, each at least 1, on CPUs the rows.

    ``args`` in the order of the kernel's parameters: on CUDA one parameter each, on Metal buffer index 0, 1, ...
    (an int32 through ``setBytes``), on CPUs what the record of the launch is made from. The size class: taken when
    ``min_rows <= r <= max_rows`` (0: no upper bound) for the recording's ``class_rows``; "one" is always taken. The kind
    ``collective`` (devices that exchange what they computed) is reserved: no device takes it yet.
    """

    symbol: str
    work: list[list[Term]]
    args: list[Arg]
    on: ThreadBlocks | Threads
    kind: Literal["kernel", "collective"] = "kernel"
    phase: Literal["any", "decode", "mixed"] = "any"
    class_rows: Rows = "one"
    min_rows: int = 0
    max_rows: int = 0


class LaunchTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The member ``code/launches.json``. ``code`` names the member with the kernels: a shared object, a cubin, a metallib or MSL
    source."""

    version: int
    contract: str
    code: str
    slots: list[Slot]
    launches: list[Launch]
    logits_slot: int


def total(terms: Sequence[Term], rows: RowCounts) -> int:
    """The sum of the terms."""
    return sum(-(-int(getattr(rows, t.rows)) // t.per) * t.times for t in terms)


def grid_of(launch: Launch, rows: RowCounts) -> tuple[int, int, int]:
    x, y, z = (max(1, total(axis, rows)) for axis in launch.work)
    return x, y, z


def taken(launch: Launch, phase: str, rows: RowCounts) -> bool:
    """Whether a recording of this phase and these rows contains the launch."""
    count = int(getattr(rows, launch.class_rows))
    inside = launch.class_rows == "one" or (launch.min_rows <= count and (not launch.max_rows or count <= launch.max_rows))
    return inside and launch.phase in ("any", phase)


def encode_table(table: LaunchTable) -> bytes:
    return msgspec.json.encode(table, order="sorted")


def decode_table(data: bytes | memoryview) -> LaunchTable:
    """Raises msgspec.ValidationError for anything that is not a launch table."""
    return msgspec.json.decode(data, type=LaunchTable)

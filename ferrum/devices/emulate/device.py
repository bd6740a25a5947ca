"""The emulator as a device: a whole GPU pack on the CPU, launch by launch, as the table says.

Every tensor, every slot of the arena and every array of the step is a buffer of its own between pages that cannot be touched,
so that an index which would silently reach a neighbour on a GPU ends the step with a ``KernelFault``. Slots are filled with
NaN before every step: a kernel that reads what this step did not write is found out by what it answers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Limits, StepBuffers, row_limits
from ferrum.devices.emulate.memory import GuardedBuffer
from ferrum.devices.emulate.module import Address, Module, Prepared, Region, Schedule, build
from ferrum.devices.host import free_memory
from ferrum.devices.launching import Pointer, Recordings, ResolvedLaunch, Resolver, choose_limits
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import Pool
from ferrum.errors import FerrumError
from ferrum.pack.check import damaged
from ferrum.pack.launch_check import read_table
from ferrum.pack.launches import HEADER, HEADER_WORDS, LaunchTable, total
from ferrum.pack.layers import LayerPoint
from ferrum.pack.programs import kv_groups, row_width
from ferrum.pack.reader import Pack

# Copies landing late find more faults than eager ones and cost nothing.
DEFAULT_SCHEDULE = Schedule("forward", "late")
_SOURCES = {"cuda": "code/step.cu", "metal": "code/step.metal"}
_NAN = 0xFF
_END = 1 << 62  # the place of the launch after the last one


class Pieces:
    """A buffer of the launch table in pieces, each guarded: from an offset to the address of the byte that lies there."""

    def __init__(self, name: str, pieces: Iterable[tuple[int, int]], schedule: Schedule) -> None:
        """``pieces``: (offset, bytes), ascending, those without bytes left out."""
        self.name = name
        sizes = [(offset, nbytes) for offset, nbytes in pieces if nbytes]
        self.starts = [offset for offset, _ in sizes]
        self.buffers = [GuardedBuffer(nbytes, schedule.guard) for _, nbytes in sizes]

    def at(self, offset: int) -> tuple[GuardedBuffer, int]:
        """The piece that holds an offset, and where in it."""
        index = bisect_right(self.starts, offset) - 1
        if index >= 0 and offset - self.starts[index] < self.buffers[index].nbytes:
            return self.buffers[index], offset - self.starts[index]
        what = f"offset {offset} of {self.name} is in no array"
        raise FerrumError("code-unloadable", what, self.name, "compile the pack again")


class EmulatedExecutor:
    """A model in emulation. Steps are taken one after the other; nothing overlaps."""

    def __init__(self, pack: Pack, options: DeviceOptions, schedule: Schedule) -> None:
        table = read_table(pack)
        self.limits: Limits = choose_limits(pack.manifest, table, options, free_memory())
        resolver = Resolver(table, self.limits, kv_groups(pack.manifest))
        device = pack.manifest.target.device
        self.module: Module = build(bytes(pack.member(_SOURCES[device])).decode(), "cuda" if device == "cuda" else "metal")
        self._schedule = schedule
        self._recordings = Recordings(resolver)
        self._prepared: dict[int, list[Prepared]] = {}
        self.pools = resolver.kv.pools
        self._slots = resolver.arena.offsets
        self._pieces = self._allocate(pack, table, resolver)
        self._header = self._pieces["inputs"].buffers[0].data.view(np.int32)
        self._header[HEADER.index("max_blocks_per_seq")] = self.limits.max_blocks_per_seq
        self.buffers = self._make_buffers(resolver)
        slot, at = self._pieces["arena"].at(resolver.arena.offsets[table.logits_slot])
        shape = self.limits.max_samples, row_width(pack.manifest)
        self._logits: NDArray[np.float32] = np.asarray(slot.view(np.float32, shape[0] * shape[1], at), np.float32).reshape(shape)
        # slots with counters keep what the last step left in them
        kept = {id(self._pieces["arena"].at(offset)[0]) for offset, _ in resolver.arena.zero}
        self._volatile = [buffer for buffer in self._pieces["arena"].buffers if id(buffer) not in kept]

    def _allocate(self, pack: Pack, table: LaunchTable, resolver: Resolver) -> dict[str, Pieces]:
        rows, layout, arena = row_limits(self.limits), resolver.layout, resolver.arena
        tensors = sorted((t.offset, t.nbytes) for t in pack.manifest.tensors)
        slots = zip(arena.offsets, (total(slot.bytes, rows) for slot in table.slots), strict=True)
        inputs = [(0, 4 * HEADER_WORDS), *((f.offset, f.nbytes) for f in layout.inputs.fields.values())]
        pieces = {
            "weights": tensors,
            "arena": list(slots),
            "kv": [(pool.start, pool.num_blocks * pool.block_bytes) for pool in resolver.kv.pools],
            "inputs": inputs,
            "outputs": [(f.offset, f.nbytes) for f in layout.outputs.fields.values()],
        }
        made = {name: Pieces(name, sizes, self._schedule) for name, sizes in pieces.items()}
        stored, weights = np.frombuffer(pack.weights, np.uint8), made["weights"]
        for start, buffer in zip(weights.starts, weights.buffers, strict=True):
            buffer.data[:] = stored[start : start + buffer.nbytes]
        return made

    def _make_buffers(self, resolver: Resolver) -> StepBuffers:
        buffers = StepBuffers(self.limits)
        for name, layout in (("inputs", resolver.layout.inputs), ("outputs", resolver.layout.outputs)):
            for field in layout.fields.values():
                if field.nbytes:
                    buffer, _ = self._pieces[name].at(field.offset)
                    setattr(buffers, field.name, buffer.data.view(field.dtype).reshape(field.shape))
        return buffers

    def _prepare(self, launch: ResolvedLaunch, early: bool) -> Prepared:
        args: list[Address | int] = []
        regions: dict[int, Region] = {}
        for arg in launch.args:
            if isinstance(arg, Pointer):
                buffer, at = self._pieces[arg.buffer].at(arg.offset)
                args.append(Address(buffer.address + at))
                # what can be written: late stores copy all of it for every block
                if arg.buffer != "weights" or self._schedule.stores == "eager":
                    constant = arg.buffer in ("weights", "inputs")
                    regions[buffer.address] = Region(buffer.address, buffer.nbytes, constant)
            else:
                args.append(arg)
        return Prepared(
            self.module, launch.symbol, launch.grid, launch.block, args, launch.shared, list(regions.values()), self._schedule,
            early=early,
        )  # fmt: skip

    def step(self) -> None:
        """Run the step that ``buffers`` describe. Raises KernelFault."""
        for launch in self._begin():
            launch.run()

    def _begin(self) -> list[Prepared]:
        """The launches of the step that ``buffers`` describe, on an arena of NaN."""
        b = self.buffers
        self._header[:3] = b.num_tokens, b.num_seqs, b.num_samples
        for buffer in self._volatile:
            buffer.data[:] = _NAN
        index = self._recordings.find(b.num_tokens, b.num_seqs)
        if index not in self._prepared:
            launches = self._recordings.all[index].launches
            self._prepared[index] = [self._prepare(launch, launch.early and i > 0) for i, launch in enumerate(launches)]
        return self._prepared[index]

    def step_through(self, points: Sequence[LayerPoint]) -> Iterator[NDArray[np.float32]]:
        """See ``SteppingExecutor``. Raises KernelFault."""
        tokens = self.buffers.num_tokens
        launches = zip(self._recordings.places(tokens, self.buffers.num_seqs), self._begin(), strict=True)
        at, launch = next(launches)
        for point in points:
            while at <= point.launch:
                launch.run()
                at, launch = next(launches, (_END, launch))
            if point.slot >= len(self._slots):
                raise damaged(f"the launch table has no slot {point.slot} for {point}", "points of the layers")
            slot, start = self._pieces["arena"].at(self._slots[point.slot])
            if start + tokens * point.row_bytes > slot.nbytes:
                raise damaged(f"slot {point.slot} of the launch table does not hold {point}", "points of the layers")
            yield point.rows(slot.data[start:], tokens)
        while at < _END:
            launch.run()
            at, launch = next(launches, (_END, launch))

    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self.buffers.num_samples]

    def copy_block(self, source: int, target: int) -> None:
        self._copy(self.pools[0], source, target)

    def copy_place(self, group: int, source: int, target: int) -> None:
        self._copy(self.pools[1 + group], source, target)

    def _copy(self, pool: Pool, source: int, target: int) -> None:
        kv, size = self._pieces["kv"].at(pool.start)[0].data, pool.block_bytes
        kv[target * size : (target + 1) * size] = kv[source * size : (source + 1) * size]

    def close(self) -> None:
        self._prepared, self._volatile = {}, []


class EmulatedDevice:
    """Runs packs for CUDA and Metal where there is no GPU, slowly and with its eyes open."""

    name = "emulate"

    def __init__(self, schedule: Schedule = DEFAULT_SCHEDULE) -> None:
        self.schedule = schedule

    def load(self, pack: Pack, options: DeviceOptions) -> EmulatedExecutor:
        """Raises FerrumError: a pack for another kind of machine, no compiler, or memory that cannot fit."""
        target = pack.manifest.target
        if target.device not in _SOURCES:
            what = f"the pack is for {target.name}, which needs no emulation"
            raise FerrumError("wrong-machine", what, pack.path.name, "compile with --target cuda-sm80 or metal-m1")
        return EmulatedExecutor(pack, options, self.schedule)

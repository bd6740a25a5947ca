"""The Metal device through pyobjc: buffers over the mapped pack, an indirect command buffer for every recording.

It has not run on hardware: no Mac was at hand. It is held to the same tests as the other devices on a stand-in for Metal.

Memory is shared between CPU and GPU, so nothing is copied: kernels read the weights where the pack is mapped and the step's
inputs where the engine wrote them, and the logits are a view. A step is an indirect command buffer that was encoded at load,
with a barrier between its commands. One command buffer runs all of it, or as many as keep each one short: the system ends what
occupies the GPU for seconds. As on CUDA there are two sets of step buffers ("lanes"), and a step that is started ahead takes
its tokens from the samples of the step before it by a copy on the device.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import math
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum import env
from ferrum.devices.base import Limits, StepBuffers
from ferrum.devices.launching import Pointer, Recording, Recordings, ResolvedLaunch, Resolver, StepMemory, align, choose_limits
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import Pool
from ferrum.errors import FerrumError
from ferrum.pack.atomic import write_atomic
from ferrum.pack.launch_check import read_table
from ferrum.pack.launches import LaunchTable
from ferrum.pack.programs import build_of, kv_groups, row_width
from ferrum.pack.reader import Pack
from ferrum.pack.schema import MEMBER_ALIGNMENT


@dataclass(frozen=True)
class Chip:
    """Of a target: the least GPU family (MTLGPUFamilyApple7 is the M1's), the version of the language that its code is in."""

    family: int
    language: tuple[int, int]


_CHIPS = {
    "apple-m1": Chip(1007, (3, 2)),
    "apple-m2": Chip(1008, (3, 2)),
    "apple-m3": Chip(1009, (3, 2)),
    "apple-m4": Chip(1009, (3, 2)),
    "apple-m5": Chip(1010, (4, 0)),
}
# The system that brought a language, and the least that it says of itself: 26 is 16 to programs built for systems before it.
_SYSTEMS = {(3, 2): ("macOS 15", 15), (4, 0): ("macOS 26", 16)}
# Operations of one command buffer: half a second for an M1 at a quarter of its peak.
_MAX_WORK = 3e11
# Heads that share a key at most, two operations for each byte of the cache that one of them reads.
_SHARED_KEYS = 8
# Before this family the pipelines of indirect commands must have been set on the encoder once.
_INDIRECT_SETS_PIPELINES = 1009
_SHARED = 0  # MTLResourceStorageModeShared
_READ_WRITE = 3  # MTLResourceUsageRead | MTLResourceUsageWrite
_CONCURRENT_DISPATCH = 1 << 5  # MTLIndirectCommandTypeConcurrentDispatch
_FAILED = 5  # MTLCommandBufferStatusError
_MAX_INDIRECT = 16384
_OTHER_COMMANDS = 64  # copies of blocks that are under way, at most what a queue has by itself
# Threadgroup memory is given in multiples of this.
_THREADGROUP_ALIGNMENT = 16


@dataclass(frozen=True)
class Metal:
    """The framework: ``api`` is pyobjc's module ``Metal``; ``pool`` frees what a call leaves to the autorelease pool."""

    api: Any
    pool: Callable[[], AbstractContextManager[Any]]


def open_metal() -> tuple[Metal, Any]:
    """The framework and the GPU of this machine. Raises FerrumError: no Mac, no package, no GPU."""
    if sys.platform != "darwin":
        raise missing("Metal exists on macOS only", "use a pack for cpu or cuda")
    try:
        api, objc = importlib.import_module("Metal"), importlib.import_module("objc")
    except ImportError:
        raise missing("the package pyobjc-framework-Metal is not installed", "pip install 'ferrum-infer[metal]'") from None
    device = api.MTLCreateSystemDefaultDevice()
    if device is None:
        raise missing("the system gives no GPU to this process", "run it outside of a virtual machine")
    return Metal(api, objc.autorelease_pool), device


def missing(what: str, next_step: str) -> FerrumError:
    return FerrumError("device-missing", what, "metal", next_step)


@dataclass
class Lane:
    """A set of step buffers, its recordings, and the command buffers that are under way."""

    memory: StepMemory
    inputs: Any
    outputs: Any
    commands: list[Any] = field(default_factory=list)
    running: list[Any] = field(default_factory=list)


class MetalExecutor:
    """A model on the GPU of a Mac."""

    def __init__(self, metal: Metal, device: Any, pack: Pack, options: DeviceOptions) -> None:
        self._metal = metal
        self._device = device
        self._where = f"metal: {device.name()}"
        self._lane = 0
        self._under_way: list[int] = []
        table = read_table(pack)
        free = int(device.recommendedMaxWorkingSetSize()) - int(device.currentAllocatedSize())
        self.limits: Limits = choose_limits(pack.manifest, table, options, free)
        with metal.pool():
            self._open(pack, table)

    def _open(self, pack: Pack, table: LaunchTable) -> None:
        groups = kv_groups(pack.manifest)
        resolver = Resolver(table, self.limits, groups)
        self._recordings = Recordings(resolver)
        self._token_work = sum(kernel.flops_per_token for kernel in build_of(pack.manifest).kernels)
        self._context_work = _SHARED_KEYS * sum(group.unit_bytes for group in groups) // groups[0].unit
        # each command of two steps in a buffer of its own: asking for one more would wait
        most = 2 * max(len(recording.launches) for recording in self._recordings.all)
        self._queue = self._device.newCommandQueueWithMaxCommandBufferCount_(most + _OTHER_COMMANDS)
        self._pipelines = self._load_code(pack, table)
        self._pools = resolver.kv.pools
        self._buffers: dict[str, Any] = {
            "weights": self._over_mapping(pack),
            "arena": self._allocate(resolver.arena.nbytes),
            "kv": self._allocate(resolver.kv.nbytes),
        }
        launches = [launch for recording in self._recordings.all for launch in recording.launches]
        numbers = sorted({arg for launch in launches for arg in launch.args if not isinstance(arg, Pointer)})
        self._numbers = {number: 4 * i for i, number in enumerate(numbers)}
        self._buffers["numbers"] = self._allocate(4 * len(numbers))
        self._bytes_of(self._buffers["numbers"])[: 4 * len(numbers)].view(np.int32)[:] = numbers
        logits = self._bytes_of(self._buffers["arena"])[resolver.arena.offsets[table.logits_slot] :]
        shape = self.limits.max_samples, row_width(pack.manifest)
        self._logits = logits[: 4 * shape[0] * shape[1]].view(np.float32).reshape(shape)
        self._lanes = [self._make_lane(resolver) for _ in range(2)]
        for lane in self._lanes:
            lane.commands = [self._record(lane, recording) for recording in self._recordings.all]

    @property
    def buffers(self) -> StepBuffers:
        """The buffers of the next step; ``begin`` changes to the other set."""
        return self._lanes[self._lane].memory.buffers if self._lanes else StepBuffers(self.limits)

    def step(self) -> None:
        """Run the step that ``buffers`` describe."""
        assert not self._under_way, "a step between begin and finish"
        lane = self._lanes[self._lane]
        self._launch(lane, ahead=False)
        self._wait(lane)

    def begin(self, ahead: bool = False) -> None:
        assert len(self._under_way) < 2 and (self._under_way or not ahead), "at most two steps are under way"
        self._launch(self._lanes[self._lane], ahead)
        self._under_way.append(self._lane)
        self._lane ^= 1

    def finish(self) -> StepBuffers:
        lane = self._lanes[self._under_way.pop(0)]
        self._wait(lane)
        return lane.memory.buffers

    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self.buffers.num_samples]

    def copy_block(self, source: int, target: int) -> None:
        self._copy_within(self._pools[0], source, target)

    def copy_place(self, group: int, source: int, target: int) -> None:
        self._copy_within(self._pools[1 + group], source, target)

    def _copy_within(self, pool: Pool, source: int, target: int) -> None:
        kv = self._buffers["kv"]
        with self._metal.pool():
            commands = self._queue.commandBuffer()
            self._copy(commands, kv, pool.at(source), kv, pool.at(target), pool.block_bytes)
            commands.commit()

    def close(self) -> None:
        if not self._lanes:
            return
        for index in self._under_way:
            self._lanes[index].running[-1].waitUntilCompleted()
        # pyobjc releases Metal's objects with the last reference; views of their memory must not outlive them
        self._lanes, self._under_way, self._buffers, self._pipelines = [], [], {}, {}
        self._logits = np.zeros((0, self.limits.vocab_size), np.float32)
        self._queue = None

    def _load_code(self, pack: Pack, table: LaunchTable) -> dict[str, Any]:
        """A pipeline for every kernel. Source is compiled by the system, which keeps the result for the next process."""
        where = f"{pack.path.name}: {table.code}"
        code = bytes(pack.member(table.code))
        if table.code.endswith(".metal"):
            options = self._metal.api.MTLCompileOptions.alloc().init()
            options.setFastMathEnabled_(False)  # sums in the written order, infinities that stay
            options.setLanguageVersion_(language_version(_CHIPS[pack.manifest.target.arch].language))
            library, error = self._device.newLibraryWithSource_options_error_(code.decode("utf-8"), options, None)
        else:
            library, error = self._device.newLibraryWithURL_error_(_file_url(library_file(code)), None)
        if library is None:
            raise _unloadable(f"the code cannot be loaded: {_first_line(error)}", where)
        found: dict[str, Any] = {}
        for symbol, shared in self._recordings.most_shared().items():
            function = library.newFunctionWithName_(symbol)
            if function is None:
                raise _unloadable(f"the code has no kernel {symbol}", where)
            description = self._metal.api.MTLComputePipelineDescriptor.alloc().init()
            description.setComputeFunction_(function)
            description.setSupportIndirectCommandBuffers_(True)
            # of its pointers only the error comes back: without one for the reflection, none is made
            pipeline, error = self._device.newComputePipelineStateWithDescriptor_options_reflection_error_(
                description, 0, None, None
            )
            if pipeline is None:
                raise _unloadable(f"no pipeline for {symbol}: {_first_line(error)}", where)
            if shared + int(pipeline.staticThreadgroupMemoryLength()) > int(self._device.maxThreadgroupMemoryLength()):
                raise _unloadable(f"{symbol} needs more threadgroup memory than this GPU has", where)
            found[symbol] = pipeline
        return found

    def _over_mapping(self, pack: Pack) -> Any:
        """A buffer over the mapped weights; a copy of them where the system does not give one."""
        nbytes = pack.manifest.weights_bytes
        address, length = pack.address("weights"), align(max(nbytes, 1), MEMBER_ALIGNMENT)
        if length > int(self._device.maxBufferLength()):
            raise FerrumError(
                "out-of-memory", f"{nbytes >> 20} MiB of weights exceed one buffer", self._where, "use a smaller number format"
            )
        mapped = (ctypes.c_uint8 * length).from_address(address)
        buffer = self._device.newBufferWithBytesNoCopy_length_options_deallocator_(mapped, length, _SHARED, None)
        if buffer is not None and self._bytes_of(buffer).ctypes.data == address:
            return buffer
        buffer = self._allocate(nbytes)
        self._bytes_of(buffer)[:nbytes] = np.frombuffer(pack.weights, np.uint8)[:nbytes]
        return buffer

    def _allocate(self, nbytes: int) -> Any:
        """Zeroed memory that CPU and GPU share."""
        buffer = self._device.newBufferWithLength_options_(max(nbytes, 16), _SHARED)
        if buffer is None:
            raise FerrumError(
                "out-of-memory",
                f"the GPU gives no buffer of {nbytes >> 20} MiB",
                self._where,
                "give a smaller --kv-cache-memory or --max-num-batched-tokens",
            )
        return buffer

    def _bytes_of(self, buffer: Any) -> NDArray[np.uint8]:
        return np.frombuffer(buffer.contents().as_buffer(int(buffer.length())), np.uint8)

    def _make_lane(self, resolver: Resolver) -> Lane:
        layout = resolver.layout
        inputs, outputs = self._allocate(layout.inputs.nbytes), self._allocate(layout.outputs.nbytes)
        return Lane(StepMemory(layout, self._bytes_of(inputs), self._bytes_of(outputs)), inputs, outputs)

    def _record(self, lane: Lane, recording: Recording) -> Any:
        """The commands of one step; each sees what the ones before it wrote."""
        launches = recording.launches
        assert len(launches) <= _MAX_INDIRECT
        description = self._metal.api.MTLIndirectCommandBufferDescriptor.alloc().init()
        description.setCommandTypes_(_CONCURRENT_DISPATCH)
        description.setInheritBuffers_(False)
        description.setInheritPipelineState_(False)
        description.setMaxKernelBufferBindCount_(max(len(launch.args) for launch in launches))
        count = len(launches)
        commands = self._device.newIndirectCommandBufferWithDescriptor_maxCommandCount_options_(description, count, _SHARED)
        for index, launch in enumerate(launches):
            self._encode(commands.indirectComputeCommandAtIndex_(index), lane, launch)
        return commands

    def _encode(self, command: Any, lane: Lane, launch: ResolvedLaunch) -> None:
        places = {**self._buffers, "inputs": lane.inputs, "outputs": lane.outputs}
        command.setComputePipelineState_(self._pipelines[launch.symbol])
        for index, arg in enumerate(launch.args):
            if isinstance(arg, Pointer):
                command.setKernelBuffer_offset_atIndex_(places[arg.buffer], arg.offset, index)
            else:  # an indirect command has no setBytes
                command.setKernelBuffer_offset_atIndex_(places["numbers"], self._numbers[arg], index)
        if launch.shared:
            command.setThreadgroupMemoryLength_atIndex_(align(launch.shared, _THREADGROUP_ALIGNMENT), 0)
        command.concurrentDispatchThreadgroups_threadsPerThreadgroup_(launch.grid, launch.block)
        command.setBarrier()

    def _launch(self, lane: Lane, ahead: bool) -> None:
        """Start the step that the lane's buffers describe. Allocates no memory of the GPU, waits for nothing."""
        memory = lane.memory
        memory.write_header()
        b = memory.buffers
        index = self._recordings.find(b.num_tokens, b.num_seqs)
        recording = self._recordings.all[index]
        ranges = split(len(recording.launches), self._work(b) / _MAX_WORK)
        lane.running = []
        with self._metal.pool():
            for start, stop in ranges:
                commands = self._queue.commandBuffer()
                if ahead and start == 0:
                    other = self._lanes[1 - self._lanes.index(lane)]
                    tokens = memory.layout.inputs.fields["tokens"].offset
                    sampled = memory.layout.outputs.fields["out_token"].offset
                    self._copy(commands, other.outputs, sampled, lane.inputs, tokens, 4 * recording.rows.samples)
                self._run(commands, lane, lane.commands[index], recording.launches, start, stop)
                commands.commit()
                lane.running.append(commands)

    def _work(self, b: StepBuffers) -> float:
        """Operations of a step, at most: products of all tokens, and attention of each to the longest context."""
        context = int(b.context_len[: b.num_seqs].max(initial=0))
        return float(b.num_tokens * (self._token_work + context * self._context_work))

    def _run(self, commands: Any, lane: Lane, recorded: Any, launches: tuple[ResolvedLaunch, ...], start: int, stop: int) -> None:
        """The commands from ``start`` to ``stop``. Command buffers that use the same memory run in the order of their commits."""
        encoder = commands.computeCommandEncoder()
        for buffer in (*self._buffers.values(), lane.inputs, lane.outputs):
            encoder.useResource_usage_(buffer, _READ_WRITE)
        if not self._device.supportsFamily_(_INDIRECT_SETS_PIPELINES):
            for symbol in dict.fromkeys(launch.symbol for launch in launches[start:stop]):
                encoder.setComputePipelineState_(self._pipelines[symbol])
                encoder.dispatchThreadgroups_threadsPerThreadgroup_((0, 0, 0), (0, 0, 0))
        encoder.executeCommandsInBuffer_withRange_(recorded, (start, stop - start))
        encoder.endEncoding()

    def _wait(self, lane: Lane) -> None:
        running, lane.running = lane.running, []
        running[-1].waitUntilCompleted()  # they end in order
        failed = next((commands for commands in running if int(commands.status()) == _FAILED), None)
        if failed is not None:
            error = _first_line(failed.error())
            raise FerrumError(
                "device-failed", f"the step failed: {error}", self._where, "check the pack with ferrum verify --numeric"
            )

    @staticmethod
    def _copy(commands: Any, source: Any, source_at: int, target: Any, target_at: int, nbytes: int) -> None:
        encoder = commands.blitCommandEncoder()
        encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(source, source_at, target, target_at, nbytes)
        encoder.endEncoding()


def language_version(language: tuple[int, int]) -> int:
    """MTLLanguageVersion of (major, minor)."""
    return (language[0] << 16) + language[1]


def split(count: int, work: float) -> list[tuple[int, int]]:
    """``count`` commands in as many pieces of nearly one size as ``work``, the whole in pieces, asks for."""
    pieces = min(count, max(1, math.ceil(work)))
    return [(i * count // pieces, (i + 1) * count // pieces) for i in range(pieces)]


def library_file(code: bytes) -> Path:
    """A metallib as a file, which is what Metal opens: in the build cache, named by its hash. Raises FerrumError."""
    folder = env.cache_dir() / "metal"
    path = folder / f"{hashlib.sha256(code).hexdigest()}.metallib"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, code)
    return path


def _file_url(path: Path) -> Any:
    return importlib.import_module("Foundation").NSURL.fileURLWithPath_(str(path))


def _unloadable(what: str, where: str) -> FerrumError:
    return FerrumError("code-unloadable", what, where, "update macOS, or compile the pack on this machine")


def _first_line(error: Any) -> str:
    return str(error.localizedDescription()).splitlines()[0] if error is not None else "no reason given"


class MetalDevice:
    """Loads packs for Apple GPUs."""

    name = "metal"

    def load(self, pack: Pack, options: DeviceOptions) -> MetalExecutor:
        """Raises FerrumError: no Mac, a GPU or a system older than the pack's, or memory that cannot fit."""
        target = pack.manifest.target
        if target.device != self.name or target.arch not in _CHIPS:
            raise FerrumError(
                "wrong-machine", f"the pack is for {target.name} and not for a GPU of Apple", pack.path.name, "use --target metal"
            )
        metal, device = open_metal()
        check_machine(device, target.arch, target.name, pack.path.name)
        return MetalExecutor(metal, device, pack, options)


def runs_here(device: Any) -> tuple[str, ...]:
    """The architectures whose packs this GPU runs, oldest first, on a system that is new enough for them."""
    return tuple(arch for arch, chip in _CHIPS.items() if device.supportsFamily_(chip.family))


def system_too_old(arch: str) -> str:
    """What this system lacks for code of ``arch``, in one sentence; empty when it lacks nothing."""
    language, version = _CHIPS[arch].language, platform.mac_ver()[0]
    brought, least = _SYSTEMS[language]
    major = int(version.split(".")[0] or 0)
    if major >= least:
        return ""
    return f"code for {arch} is Metal {language[0]}.{language[1]}, which {brought} brought, and this machine has macOS {version}"


def check_machine(device: Any, arch: str, target: str, where: str) -> None:
    """Raises FerrumError when the GPU or the system is older than ``arch`` needs."""
    if arch not in runs_here(device):
        raise FerrumError(
            "wrong-machine",
            f"the pack is for {target} and this machine has {device.name()}",
            where,
            "compile with --target metal on this machine",
        )
    if lacks := system_too_old(arch):
        raise FerrumError("wrong-machine", lacks, where, "update macOS")

"""The CUDA device: cubins from the mapped pack, one graph for every recording, no torch.

Everything is allocated at load. A step is then: write the counts, launch a graph, wait for an event. The graph copies the
step's inputs from pinned memory, runs the kernels, sampling included, and copies the outputs back.

There are two sets of step buffers ("lanes"), each with graphs of its own, so that the engine can fill and start a step while
the one before it runs (``begin`` and ``finish``). A step that is started ahead takes its tokens from the samples of the step
before it, on the device: its graphs have one more copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Limits, StepBuffers
from ferrum.devices.cuda_driver import Driver, Gpu, choose_gpu, driver_version, open_driver
from ferrum.devices.launching import (
    Pointer,
    Recording,
    Recordings,
    ResolvedLaunch,
    Resolver,
    StepMemory,
    choose_limits,
)
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import Pool
from ferrum.errors import FerrumError
from ferrum.pack.launch_check import read_table
from ferrum.pack.launches import LaunchTable
from ferrum.pack.programs import kv_groups, row_width
from ferrum.pack.reader import Pack

# Weights go to the device in pieces through two pinned buffers of this size: one is filled while the other is copied.
_STAGING_BYTES = 32 << 20
_ROOF_BYTES = 1 << 30


@dataclass
class Lane:
    """A set of step buffers in pinned memory, and its graphs by the index of their recording: plain, and for steps ahead."""

    memory: StepMemory
    done: Any
    graphs: list[Any] = field(default_factory=list)
    ahead: dict[int, Any] = field(default_factory=dict)


class CudaExecutor:
    """A model on one GPU."""

    def __init__(self, driver: Driver, gpu: Gpu, pack: Pack, options: DeviceOptions) -> None:
        self.gpu = gpu
        self._cuda = Driver(driver.api, f"cuda: {gpu.name}")
        self._call = self._cuda.call
        self._release = contextlib.ExitStack()
        self._lanes: list[Lane] = []
        self._lane = 0
        self._under_way: list[int] = []
        self._logits: NDArray[np.float32] | None = None
        self._stream: Any = None
        self._bound = threading.local()  # a thread's id returns with another thread, what is local to it does not
        try:
            self._open(pack, options)
        except BaseException:
            self.close()
            raise

    def _open(self, pack: Pack, options: DeviceOptions) -> None:
        call = self._call
        device = call("cuDeviceGet", self.gpu.ordinal)
        self._context = call("cuDevicePrimaryCtxRetain", device)
        self._release.callback(call, "cuDevicePrimaryCtxRelease", device)
        self._bind()
        self._stream = call("cuStreamCreate", int(self._cuda.api.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self._release.callback(call, "cuStreamDestroy", self._stream)
        table = read_table(pack)
        free = self.free_memory()
        self.limits: Limits = choose_limits(pack.manifest, table, options, free)
        resolver = Resolver(table, self.limits, kv_groups(pack.manifest))
        self._recordings = Recordings(resolver)
        self._functions = self._load_code(pack, table)
        self._pools = resolver.kv.pools
        self._logits_at, self._width = resolver.arena.offsets[table.logits_slot], row_width(pack.manifest)
        self._allocate_buffers(pack, resolver)
        self._upload(pack.weights[: pack.manifest.weights_bytes])
        self._lanes = [self._make_lane(resolver) for _ in range(2)]
        for lane in self._lanes:
            self._record_all(lane)
        call("cuStreamSynchronize", self._stream)

    @property
    def buffers(self) -> StepBuffers:
        """The buffers of the next step; ``begin`` changes to the other set."""
        return self._lanes[self._lane].memory.buffers if self._lanes else StepBuffers(self.limits)

    def step(self) -> None:
        """Run the step that ``buffers`` describe."""
        assert not self._under_way, "a step between begin and finish"
        lane = self._lanes[self._lane]
        self._launch(lane, ahead=False)
        self._call("cuEventSynchronize", lane.done)

    def begin(self, ahead: bool = False) -> None:
        assert len(self._under_way) < 2 and (self._under_way or not ahead), "at most two steps are under way"
        self._launch(self._lanes[self._lane], ahead)
        self._under_way.append(self._lane)
        self._lane ^= 1

    def finish(self) -> StepBuffers:
        lane = self._lanes[self._under_way.pop(0)]
        self._bind()
        self._call("cuEventSynchronize", lane.done)
        return lane.memory.buffers

    def logits(self) -> NDArray[np.float32]:
        self._bind()
        rows = self.buffers.num_samples
        if self._logits is None:
            self._logits = np.zeros((self.limits.max_samples, self._width), np.float32)
        if rows:
            source = self._at["arena"] + self._logits_at
            self._call("cuMemcpyDtoHAsync", self._logits.ctypes.data, source, 4 * rows * self._width, self._stream)
            self._call("cuStreamSynchronize", self._stream)
        return self._logits[:rows]

    def copy_block(self, source: int, target: int) -> None:
        self._copy(self._pools[0], source, target)

    def copy_place(self, group: int, source: int, target: int) -> None:
        self._copy(self._pools[1 + group], source, target)

    def _copy(self, pool: Pool, source: int, target: int) -> None:
        self._bind()
        kv = self._at["kv"]
        self._call("cuMemcpyDtoDAsync", kv + pool.at(target), kv + pool.at(source), pool.block_bytes, self._stream)

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that nobody has taken."""
        self._bind()
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def measure_roofs(self) -> dict[str, float]:
        """GB/s that the GPU reads and writes in a copy within its memory, the best of five."""
        self._bind()
        call, stream = self._call, self._stream
        size = min(_ROOF_BYTES, self.free_memory() // 4)
        best = 0.0
        with contextlib.ExitStack() as release:
            source, target = (_allocate(call, size, release) for _ in range(2))
            start, end = (call("cuEventCreate", 0) for _ in range(2))
            for event in (start, end):
                release.callback(call, "cuEventDestroy", event)
            for _ in range(6):
                call("cuEventRecord", start, stream)
                call("cuMemcpyDtoDAsync", target, source, size, stream)
                call("cuEventRecord", end, stream)
                call("cuEventSynchronize", end)
                milliseconds = float(call("cuEventElapsedTime", start, end))
                best = max(best, 2 * size / max(milliseconds, 1e-6) / 1e6)
        return {"read_gb_per_s": best}

    def close(self) -> None:
        with contextlib.suppress(FerrumError):  # after a failed step every call fails; all are tried none the less
            if self._stream is not None:
                self._bind()
                self._call("cuStreamSynchronize", self._stream)
        # The pinned memory goes away: nobody may find it through the executor any more.
        self._lanes, self._logits, self._stream = [], None, None
        release, self._release = self._release, contextlib.ExitStack()
        with contextlib.suppress(FerrumError):
            release.close()

    def _bind(self) -> None:
        """Make the context current on this thread, which need not be the one that loaded the model."""
        if not getattr(self._bound, "here", False):
            self._call("cuCtxSetCurrent", self._context)
            self._bound.here = True

    def _load_code(self, pack: Pack, table: LaunchTable) -> dict[str, Any]:
        """The functions of all launches, loaded for good: nothing is loaded at the first step."""
        call, attribute = self._call, self._cuda.api.CUfunction_attribute
        where = f"{pack.path.name}: {table.code}"
        try:
            library = call("cuLibraryLoadData", pack.address(table.code), [], [], 0, [], [], 0)
        except FerrumError as error:
            raise FerrumError(
                "code-unloadable",
                f"the code cannot be loaded by a driver of CUDA {driver_version(self._cuda)}: {error.what}",
                where,
                "update the NVIDIA driver, or compile the pack on this machine",
            ) from None
        self._release.callback(call, "cuLibraryUnload", library)
        found: dict[str, Any] = {}
        for symbol, shared in self._recordings.most_shared().items():
            try:
                kernel = call("cuLibraryGetKernel", library, symbol.encode())
            except FerrumError:
                raise FerrumError(
                    "code-unloadable", f"the code has no kernel {symbol}", where, "compile the pack again"
                ) from None
            found[symbol] = call("cuKernelGetFunction", kernel)
            if shared:
                call("cuFuncSetAttribute", found[symbol], attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        return found

    def _allocate_buffers(self, pack: Pack, resolver: Resolver) -> None:
        sizes = {
            "weights": pack.manifest.weights_bytes,
            "arena": resolver.arena.nbytes,
            "kv": resolver.kv.nbytes,
            "inputs": resolver.layout.inputs.nbytes,
            "outputs": resolver.layout.outputs.nbytes,
        }
        self._at = {name: _allocate(self._call, nbytes, self._release) for name, nbytes in sizes.items()}
        # What a masked score weighs with zero must be a number: no memory is left as it was found.
        for name in ("arena", "kv", "inputs", "outputs"):
            self._call("cuMemsetD8Async", self._at[name], 0, max(sizes[name], 1), self._stream)

    def _upload(self, weights: memoryview) -> None:
        source = np.frombuffer(weights, np.uint8)
        call, stream = self._call, self._stream
        with contextlib.ExitStack() as release:
            size = min(_STAGING_BYTES, max(source.nbytes, 1))
            staging = [self._pinned(size, release) for _ in range(2)]
            copied = [call("cuEventCreate", _untimed(self._cuda)) for _ in range(2)]
            for event in copied:
                release.callback(call, "cuEventDestroy", event)
            release.callback(call, "cuStreamSynchronize", stream)
            for i, start in enumerate(range(0, source.nbytes, size)):
                piece = source[start : start + size]
                if i >= 2:
                    call("cuEventSynchronize", copied[i % 2])
                staging[i % 2][: piece.nbytes] = piece
                call("cuMemcpyHtoDAsync", self._at["weights"] + start, staging[i % 2].ctypes.data, piece.nbytes, stream)
                call("cuEventRecord", copied[i % 2], stream)

    def _pinned(self, nbytes: int, release: contextlib.ExitStack) -> NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", nbytes, 0))
        release.callback(self._call, "cuMemFreeHost", address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def _make_lane(self, resolver: Resolver) -> Lane:
        layout = resolver.layout
        inputs, outputs = (self._pinned(b.nbytes, self._release) for b in (layout.inputs, layout.outputs))
        done = self._call("cuEventCreate", _untimed(self._cuda))
        self._release.callback(self._call, "cuEventDestroy", done)
        return Lane(StepMemory(layout, inputs, outputs), done)

    def _record_all(self, lane: Lane) -> None:
        lane.graphs = [self._record(lane, recording, ahead=False) for recording in self._recordings.all]
        lane.ahead = {i: self._record(lane, self._recordings.all[i], ahead=True) for i in self._recordings.decode_indices()}

    def _record(self, lane: Lane, recording: Recording, ahead: bool) -> Any:
        """A graph of one step, ready to be launched."""
        call, stream = self._call, self._stream
        call("cuStreamBeginCapture", stream, self._cuda.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            self._enqueue(lane, recording, ahead)
        except BaseException:  # a stream that stays in capture could not even be waited for
            with contextlib.suppress(FerrumError):
                call("cuGraphDestroy", call("cuStreamEndCapture", stream))
            raise
        graph = call("cuStreamEndCapture", stream)
        try:
            executable = call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)
        self._release.callback(call, "cuGraphExecDestroy", executable)
        call("cuGraphUpload", executable, stream)
        return executable

    def _enqueue(self, lane: Lane, recording: Recording, ahead: bool) -> None:
        """Inputs to the device, kernels, outputs to the host."""
        call, stream, at, layout = self._call, self._stream, self._at, lane.memory.layout
        inputs = layout.common_bytes(recording.rows.seqs)
        call("cuMemcpyHtoDAsync", at["inputs"], lane.memory.inputs.ctypes.data, inputs, stream)
        if ahead:
            tokens = at["inputs"] + layout.inputs.fields["tokens"].offset
            sampled = at["outputs"] + layout.outputs.fields["out_token"].offset
            call("cuMemcpyDtoDAsync", tokens, sampled, 4 * recording.rows.samples, stream)
        for i, launch in enumerate(recording.launches):
            self._enqueue_launch(launch, early=launch.early and i > 0)  # the first one follows copies, which nothing waits for
        call("cuMemcpyDtoHAsync", lane.memory.outputs.ctypes.data, at["outputs"], layout.outputs.nbytes, stream)

    def _enqueue_launch(self, launch: ResolvedLaunch, early: bool) -> None:
        """``early``: it may start before the launch in front of it has ended."""
        # every parameter in 8 bytes of its own: a pointer, or an int32 in the first four
        values = np.array(
            [self._at[a.buffer] + a.offset if isinstance(a, Pointer) else a & 0xFFFFFFFF for a in launch.args] or [0], np.uint64
        )
        pointers = values.ctypes.data + 8 * np.arange(values.size, dtype=np.uint64)
        function, params = self._functions[launch.symbol], pointers.ctypes.data
        if early:
            self._call("cuLaunchKernelEx", self._early_launch(launch), function, params, 0)
            return
        self._call("cuLaunchKernel", function, *launch.grid, *launch.block, launch.shared, self._stream, params, 0)

    def _early_launch(self, launch: ResolvedLaunch) -> Any:
        """A launch that may start while the one before it ends; the graph keeps that as an edge of its own kind."""
        api = self._cuda.api
        attribute = api.CUlaunchAttribute()
        attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
        config.sharedMemBytes, config.hStream = launch.shared, self._stream
        config.attrs, config.numAttrs = [attribute], 1
        return config

    def _launch(self, lane: Lane, ahead: bool) -> None:
        """Start the step that the lane's buffers describe. Allocates nothing, waits for nothing."""
        self._bind()
        call, stream, memory = self._call, self._stream, lane.memory
        memory.write_header()
        buffers = memory.buffers
        for offset, nbytes in memory.rare_ranges():
            call("cuMemcpyHtoDAsync", self._at["inputs"] + offset, memory.inputs.ctypes.data + offset, nbytes, stream)
        index = self._recordings.find(buffers.num_tokens, buffers.num_seqs)
        call("cuGraphLaunch", lane.ahead[index] if ahead else lane.graphs[index], stream)
        call("cuEventRecord", lane.done, stream)


def _allocate(call: Any, nbytes: int, release: contextlib.ExitStack) -> int:
    pointer = int(call("cuMemAlloc", max(nbytes, 1)))
    release.callback(call, "cuMemFree", pointer)
    return pointer


def _untimed(driver: Driver) -> int:
    return int(driver.api.CUevent_flags.CU_EVENT_DISABLE_TIMING)


class CudaDevice:
    """Loads packs for NVIDIA GPUs."""

    name = "cuda"

    def load(self, pack: Pack, options: DeviceOptions) -> CudaExecutor:
        """Raises FerrumError: no driver, no GPU that runs the pack's code, or memory that cannot fit."""
        target = pack.manifest.target
        if target.device != self.name:
            raise FerrumError(
                "wrong-machine", f"the pack is for {target.name} and not for a GPU of NVIDIA", pack.path.name, "use --target cuda"
            )
        driver = open_driver()
        gpu = choose_gpu(driver, target.arch, target.name, pack.path.name)
        return CudaExecutor(driver, gpu, pack, options)
